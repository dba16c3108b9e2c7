"""Forward, sum pooling."""

from __future__ import annotations

from typing import Any

import cases
import limits
import ours
import peers
import pytest
import workloads


@pytest.mark.parametrize("case", cases.LOOKUP, ids=cases.name)
def test_forward(benchmark: Any, arena: Any, case: tuple[str, str, str, int]) -> None:
    label, precision, distribution, threads = case
    shape = cases.shape_of(arena, label)
    batches = workloads.stream(shape, distribution)
    entries = [
        ours.forward(precision, batches),
        peers.torch_forward(precision, batches),
        peers.fbgemm_forward(precision, batches),
        limits.gather(precision, batches, threads),
    ]
    what = {
        "operation": "forward",
        "shape": label,
        "precision": precision,
        "distribution": distribution,
        "threads": threads,
    }
    arena.compare(benchmark, "lookup", what, shape.lookups, entries)
