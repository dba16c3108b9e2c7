"""What must not raise the cost of a row: more rows, more skew, more duplicates. INT4, dimension 64.

The limit shows how much of a rise is due to the processor's caches and TLB.
"""

from __future__ import annotations

from typing import Any

import cases
import limits
import ours
import peers
import pytest
import workloads
from arena import Entry
from targets import SKEWS, THREADS
from workloads import Shape, Stream

OPERATIONS = ["forward", "backward"]
ROWS = [10**4, 10**5, 10**6, 10**7, 10**8]
OPTIMIZER = "rowwise_adagrad"


def entries(operation: str, batches: Stream, threads: int) -> list[Entry]:
    """Return mpembed's and the limit's."""
    if operation == "forward":
        return [
            ours.forward("int4", batches, OPTIMIZER),
            limits.gather("int4", batches, threads, OPTIMIZER),
        ]
    return [
        ours.backward("int4", OPTIMIZER, batches),
        limits.modify("int4", OPTIMIZER, batches, threads),
    ]


def what(operation: str, rows: int, distribution: str, threads: int) -> dict[str, Any]:
    return {
        "operation": operation,
        "rows": rows,
        "precision": "int4",
        "distribution": distribution,
        "threads": threads,
    }


@pytest.mark.parametrize("case", cases.product(ROWS, OPERATIONS, THREADS), ids=cases.name)
def test_rows(benchmark: Any, arena: Any, case: tuple[int, str, int]) -> None:
    rows, operation, threads = case
    if arena.quick and rows > 10**6:
        pytest.skip("tables of this size are left out of a quick run")
    # Every table size has the same number of different rows in a batch, and no batch comes twice.
    batches = workloads.stream(Shape(1, rows, 64, 20, bags=400), "distinct", count=110)
    found = what(operation, rows, "distinct", threads)
    contenders = entries(operation, batches, threads)
    arena.compare(benchmark, "growth rows", found, batches.shape.lookups, contenders)


@pytest.mark.parametrize("case", cases.product(OPERATIONS, SKEWS, THREADS), ids=cases.name)
def test_skew(benchmark: Any, arena: Any, case: tuple[str, str, int]) -> None:
    operation, distribution, threads = case
    shape = cases.shape_of(arena, "4Mx64")
    batches = workloads.stream(shape, distribution)
    found = what(operation, shape.rows, distribution, threads)
    contenders = entries(operation, batches, threads)
    if operation == "backward":
        contenders.append(peers.fbgemm_backward("fp32", OPTIMIZER, batches))
    arena.compare(benchmark, "growth skew", found, shape.lookups, contenders)
