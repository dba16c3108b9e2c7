"""The unique rows of a batch and where each occurs."""

from __future__ import annotations

from typing import Any

import cases
import limits
import numpy as np
import peers
import pytest
import targets
import workloads
from arena import Entry
from rounds import OURS, Contender
from workloads import Stream

import mpembed as mpe


def entries(batches: Stream) -> list[Entry]:
    def torch_unique() -> Contender:
        torch = peers.torch()
        tensors = [torch.from_numpy(x) for x in batches.batches]
        unique = torch.unique
        return Contender("torch", lambda i: unique(tensors[i % len(tensors)], return_inverse=True))

    return [
        Entry(OURS, OURS, lambda: None, lambda _: Contender(OURS, ours(batches))),
        Entry("torch.unique", "torch", lambda: None, lambda _: torch_unique()),
        Entry("numpy.unique", "numpy", lambda: None, lambda _: Contender("", numpy(batches))),
    ]


def ours(batches: Stream) -> workloads.Step:
    n = batches.shape.lookups
    out = np.empty(n, np.int64), np.empty(n + 1, np.int64), np.empty(n, np.int32)
    return lambda i: mpe.ops.unique_rows(batches.at(i), out=out)


def numpy(batches: Stream) -> workloads.Step:
    return lambda i: np.unique(batches.at(i), return_inverse=True)


@pytest.mark.parametrize(
    "case", cases.product(workloads.DISTRIBUTIONS, targets.THREADS), ids=cases.name
)
def test_unique(benchmark: Any, arena: Any, case: tuple[str, int]) -> None:
    distribution, threads = case
    shape = cases.shape_of(arena, "4Mx64")
    what = {"operation": "unique", "distribution": distribution, "threads": threads}
    batches = workloads.stream(shape, distribution)
    copied = limits.copy((8 + 8 + 8 + 4) * shape.lookups, threads)  # what is read and written
    arena.compare(benchmark, "dedup", what, shape.lookups, [*entries(batches), copied])
