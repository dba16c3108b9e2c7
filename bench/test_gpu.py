"""Forward, training and conversion on a GPU, compared with PyTorch, FBGEMM and the floor of bytes.

A round queues several calls one after another, then waits once for the device.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import gpu_workloads as gpu
import pytest
import workloads

import mpembed as mpe
from mpembed_gpu import traffic

pytestmark = pytest.mark.gpu
MISSING = gpu.missing()
CALLS = 10
needs_gpu = pytest.mark.skipif(MISSING is not None, reason=f"gpu: {MISSING}")
DISTRIBUTIONS = ["uniform", "zipf"]


def has_torch() -> bool:
    """Whether PyTorch is here and sees the GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


needs_torch = pytest.mark.skipif(not has_torch(), reason="PyTorch with CUDA is not installed")
needs_fbgemm = pytest.mark.skipif(
    not has_torch() or not workloads.has_fbgemm(), reason="FBGEMM with CUDA is not installed"
)


def measure(
    benchmark: Any, what: tuple[gpu.Step, gpu.Wait], rows: int, moved: traffic.Bytes | None = None
) -> None:
    """Time rounds of calls; record the rows of a call and the time of the floor."""
    step, wait = what

    def calls() -> None:
        for i in range(CALLS):
            step(i)
        wait()

    benchmark.extra_info.update(calls=CALLS, rows=rows)
    if moved is not None:
        benchmark.extra_info["floor_seconds"] = gpu.floor_seconds(moved, rows)
    benchmark.pedantic(calls, rounds=10, warmup_rounds=2)


@needs_gpu
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("precision", list(gpu.FORMAT))
def test_forward(benchmark: Any, precision: str, dim: int) -> None:
    benchmark.group = f"gpu forward {dim} uniform"
    moved = traffic.forward(gpu.FORMAT[precision], dim)
    what = gpu.forward(precision, dim, gpu.batches("uniform"))
    measure(benchmark, what, gpu.LOOKUPS, moved)


@needs_gpu
@needs_torch
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_forward_torch(benchmark: Any, dim: int) -> None:
    benchmark.group = f"gpu forward {dim} uniform"
    measure(benchmark, gpu.torch_forward(dim, gpu.batches("uniform")), gpu.LOOKUPS)


@needs_gpu
@needs_fbgemm
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_forward_fbgemm(benchmark: Any, precision: str, dim: int) -> None:
    benchmark.group = f"gpu forward {dim} uniform"
    what = gpu.fbgemm(precision, dim, "sgd", gpu.batches("uniform"), backward=False)
    measure(benchmark, what, gpu.LOOKUPS)


@needs_gpu
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_train(benchmark: Any, precision: str, optimizer: str, distribution: str) -> None:
    benchmark.group = f"gpu train 64 {optimizer} {distribution}"
    fmt = gpu.FORMAT[precision]
    both = (
        traffic.forward(fmt, 64),
        traffic.update(fmt, 64, gpu.OPTIMIZER[optimizer]),
        traffic.dedup(),
    )
    floor = traffic.Bytes(*(sum(getattr(b, k) for b in both) for k in ("floor", "memory", "l2")))
    what = gpu.train(precision, 64, optimizer, gpu.batches(distribution))
    measure(benchmark, what, gpu.LOOKUPS, floor if distribution == "uniform" else None)


@needs_gpu
@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_train_cached(benchmark: Any, precision: str, policy: str, placement: str) -> None:
    benchmark.group = "gpu train 64 rowwise_adagrad zipf"
    cache = mpe.CacheConfig(load_factor=0.05, policy=policy)
    indices = gpu.batches("zipf")
    more = {"cache": cache, "placement": placement}
    measure(benchmark, gpu.train(precision, 64, "rowwise_adagrad", indices, **more), gpu.LOOKUPS)


@needs_gpu
@needs_fbgemm
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_train_fbgemm(benchmark: Any, precision: str, optimizer: str, distribution: str) -> None:
    benchmark.group = f"gpu train 64 {optimizer} {distribution}"
    what = gpu.fbgemm(precision, 64, optimizer, gpu.batches(distribution), backward=True)
    measure(benchmark, what, gpu.LOOKUPS)


@needs_gpu
@pytest.mark.parametrize("operation", ["quantize", "dequantize"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int2"])
def test_convert(benchmark: Any, precision: str, operation: str) -> None:
    benchmark.group = f"gpu {operation} 64"
    what = gpu.convert(operation, precision, 64)
    measure(benchmark, what, gpu.BAGS, traffic.convert(gpu.FORMAT[precision], 64))
