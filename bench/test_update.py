"""Fused backward: sort, sum the gradients of a row, update it. The forward is not timed."""

from __future__ import annotations

from typing import Any

import cases
import limits
import ours
import peers
import pytest
import workloads


@pytest.mark.parametrize("case", cases.UPDATE, ids=cases.name)
def test_backward(benchmark: Any, arena: Any, case: tuple[str, str, str, str, int]) -> None:
    label, optimizer, precision, distribution, threads = case
    shape = cases.shape_of(arena, label)
    batches = workloads.stream(shape, distribution)
    entries = [
        ours.backward(precision, optimizer, batches),
        # On the CPU FBGEMM has no Adam: its Adagrad is the nearest.
        peers.fbgemm_backward("fp32", "adagrad" if optimizer == "adam" else optimizer, batches),
        peers.torch_backward(optimizer, batches),
        limits.modify(precision, optimizer, batches, threads),
    ]
    if precision == "fp16":
        entries.insert(2, peers.fbgemm_backward("fp16", optimizer, batches))
    what = {
        "operation": "backward",
        "shape": label,
        "optimizer": optimizer,
        "precision": precision,
        "distribution": distribution,
        "threads": threads,
    }
    arena.compare(benchmark, "update", what, shape.lookups, entries)
