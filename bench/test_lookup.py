"""Forward, sum pooling."""

from typing import Any

import pytest
import workloads


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.benchmark(group="lookup uniform")
def test_mpembed(benchmark: Any, precision: str) -> None:
    step = workloads.forward_ours(precision, workloads.batches("uniform"))
    benchmark.extra_info["lookups"] = workloads.LOOKUPS
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)


@pytest.mark.benchmark(group="lookup uniform")
def test_torch(benchmark: Any) -> None:
    pytest.importorskip("torch")
    step = workloads.forward_torch(workloads.batches("uniform"))
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)


@pytest.mark.skipif(not workloads.has_fbgemm(), reason="FBGEMM is not installed")
@pytest.mark.benchmark(group="lookup uniform")
def test_fbgemm(benchmark: Any) -> None:
    step = workloads.forward_fbgemm("fp32", workloads.batches("uniform"))
    benchmark.pedantic(step, args=(0,), rounds=20, warmup_rounds=2)
