"""Forward and fused backward."""

from typing import Any

import pytest
import workloads

import mpembed as mpe


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_mpembed(benchmark: Any, precision: str, optimizer: str, distribution: str) -> None:
    benchmark.group = f"train {optimizer} {distribution}"
    step = workloads.train_ours(precision, optimizer, workloads.batches(distribution))
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_mpembed_cached(benchmark: Any, precision: str, distribution: str) -> None:
    benchmark.group = f"train rowwise_adagrad {distribution}"
    cache = mpe.CacheConfig(load_factor=0.05, policy="lfu")
    indices = workloads.batches(distribution)
    step = workloads.train_ours(precision, "rowwise_adagrad", indices, cache)
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)


@pytest.mark.skipif(not workloads.has_fbgemm(), reason="FBGEMM is not installed")
@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
def test_fbgemm(benchmark: Any, optimizer: str, distribution: str) -> None:
    benchmark.group = f"train {optimizer} {distribution}"
    step = workloads.train_fbgemm("fp32", optimizer, workloads.batches(distribution))
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)
