"""The whole training step: forward and fused backward, against FBGEMM's in FP32."""

from __future__ import annotations

from typing import Any

import cases
import limits
import ours
import peers
import pytest
import targets
import workloads

OPTIMIZER = "rowwise_adagrad"
CASES = cases.product(
    ["fp32", "int8", "int4", "int8 + 5 %", "int4 + 5 %"],
    workloads.DISTRIBUTIONS,
    targets.THREADS,
)


@pytest.mark.parametrize("case", CASES, ids=cases.name)
def test_step(benchmark: Any, arena: Any, case: tuple[str, str, int]) -> None:
    setting, distribution, threads = case
    precision, cached, _ = setting.partition(" + 5 %")
    shape = cases.shape_of(arena, "4Mx64")
    batches = workloads.stream(shape, distribution, seed=threads)
    if cached:
        first = ours.cached_step(precision, OPTIMIZER, batches, distribution)
    else:
        first = ours.backward(precision, OPTIMIZER, batches, whole=True)
    what = {
        "operation": "step",
        "shape": "4Mx64",
        "optimizer": OPTIMIZER,
        "precision": precision,
        "cache": bool(cached),
        "distribution": distribution,
        "threads": threads,
    }
    entries = [
        first,
        peers.fbgemm_backward("fp32", OPTIMIZER, batches, whole=True),
        limits.modify(precision, OPTIMIZER, batches, threads, whole=True),
    ]
    arena.compare(benchmark, "step", what, shape.lookups, entries, fresh=True)


@pytest.mark.parametrize("threads", targets.THREADS)
def test_step_against_torch(benchmark: Any, arena: Any, threads: int) -> None:
    shape = cases.shape_of(arena, "4Mx64")
    batches = workloads.stream(shape, "zipf1.05", seed=threads)
    what = {
        "operation": "step",
        "shape": "4Mx64",
        "optimizer": "adagrad",
        "precision": "fp32",
        "cache": False,
        "distribution": "zipf1.05",
        "threads": threads,
    }
    entries = [
        ours.backward("fp32", "adagrad", batches, whole=True),
        peers.fbgemm_backward("fp32", "adagrad", batches, whole=True),
        peers.torch_backward("adagrad", batches, whole=True),
        limits.modify("fp32", "adagrad", batches, threads, whole=True),
    ]
    arena.compare(benchmark, "step", what, shape.lookups, entries)
