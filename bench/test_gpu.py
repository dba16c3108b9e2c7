"""Forward, training and conversion on a GPU, compared with PyTorch, FBGEMM and the floor of bytes.

Times are the device's, by events around several calls in a row.
"""

from __future__ import annotations

import importlib.util

import gpu_figures
import gpu_workloads as gpu
import pytest
import workloads

import mpembed as mpe
from mpembed_gpu import traffic

pytestmark = pytest.mark.gpu
MISSING = gpu.missing()
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


class Measure:
    """Times calls, and keeps the figures under a test's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self,
        group: str,
        what: tuple[gpu.Step, gpu.Wait],
        rows: int,
        moved: traffic.Bytes | None = None,
    ) -> None:
        """Keep the times of a call, its number of rows, and the time of the floor."""
        device, host = gpu.times(*what)
        gpu_figures.add(
            "benchmark",
            f"{group}: {self.name}: {device * 1e6:.1f} us, host {host * 1e6:.1f} us",
            group=group,
            name=self.name,
            rows=rows,
            device_seconds=device,
            host_seconds=host,
            floor_seconds=gpu.floor_seconds(moved, rows) if moved else None,
        )


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    return Measure(request.node.name)


@needs_gpu
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("precision", list(gpu.FORMAT))
def test_forward(measure: Measure, precision: str, dim: int) -> None:
    group = f"gpu forward {dim} uniform"
    moved = traffic.forward(gpu.FORMAT[precision], dim)
    what = gpu.forward(precision, dim, gpu.batches("uniform"))
    measure(group, what, gpu.LOOKUPS, moved)


@needs_gpu
@needs_torch
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_forward_torch(measure: Measure, dim: int) -> None:
    group = f"gpu forward {dim} uniform"
    measure(group, gpu.torch_forward(dim, gpu.batches("uniform")), gpu.LOOKUPS)


@needs_gpu
@needs_fbgemm
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_forward_fbgemm(measure: Measure, precision: str, dim: int) -> None:
    group = f"gpu forward {dim} uniform"
    what = gpu.fbgemm(precision, dim, "sgd", gpu.batches("uniform"), backward=False)
    measure(group, what, gpu.LOOKUPS)


@needs_gpu
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_train(
    measure: Measure, precision: str, dim: int, optimizer: str, distribution: str
) -> None:
    group = f"gpu train {dim} {optimizer} {distribution}"
    fmt = gpu.FORMAT[precision]
    both = (
        traffic.forward(fmt, dim),
        traffic.update(fmt, dim, gpu.OPTIMIZER[optimizer]),
        traffic.dedup(),
    )
    floor = traffic.Bytes(*(sum(getattr(b, k) for b in both) for k in ("floor", "memory", "l2")))
    what = gpu.train(precision, dim, optimizer, gpu.batches(distribution))
    measure(group, what, gpu.LOOKUPS, floor if distribution == "uniform" else None)


@needs_gpu
@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_train_cached(measure: Measure, precision: str, policy: str, placement: str) -> None:
    group = "gpu train 64 rowwise_adagrad zipf"
    cache = mpe.CacheConfig(load_factor=0.05, policy=policy)
    indices = gpu.batches("zipf")
    more = {"cache": cache, "placement": placement}
    measure(group, gpu.train(precision, 64, "rowwise_adagrad", indices, **more), gpu.LOOKUPS)


@needs_gpu
@needs_fbgemm
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("optimizer", list(workloads.OPTIMIZERS))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_train_fbgemm(measure: Measure, precision: str, optimizer: str, distribution: str) -> None:
    group = f"gpu train 64 {optimizer} {distribution}"
    what = gpu.fbgemm(precision, 64, optimizer, gpu.batches(distribution), backward=True)
    measure(group, what, gpu.LOOKUPS)


@needs_gpu
@pytest.mark.parametrize("operation", ["quantize", "dequantize"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int2"])
def test_convert(measure: Measure, precision: str, operation: str) -> None:
    group = f"gpu {operation} 64"
    what = gpu.convert(operation, precision, 64)
    measure(group, what, gpu.BAGS, traffic.convert(gpu.FORMAT[precision], 64))
