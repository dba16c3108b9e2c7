"""Steps on one table of a GPU: mpembed's, PyTorch's and FBGEMM's, and how to wait for them."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import fbgemm_peer
import numpy as np
import workloads
from gpu_sizes import AHEAD, size

import mpembed as mpe
from mpembed_gpu.devices import measured
from mpembed_gpu.registry import FORMATS, OPTIMIZERS
from mpembed_gpu.runtime import Runtime
from mpembed_gpu.traffic import POOL, Bytes

ROWS, BAGS = size(10_000_000), size(1 << 16)
CALLS, ROUNDS = 10, 10
LOOKUPS = BAGS * POOL
OFFSETS = np.arange(0, LOOKUPS + 1, POOL)
BATCHES = 4
FORMAT = {fmt.name: fmt for fmt in FORMATS}
OPTIMIZER = {optimizer.name: optimizer for optimizer in OPTIMIZERS}
Step = Callable[[int], Any]
Wait = Callable[[], Any]


def missing() -> str | None:
    """Return why mpembed has no GPU to run on, or None."""
    try:
        mpe.to_device(np.zeros(1, np.float32), "cuda")
    except AttributeError:
        return "this mpembed knows no devices"
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
    return None


@functools.cache
def runtime() -> Runtime:
    """Return the runtime whose events time the calls."""
    return Runtime()


def times(step: Step, wait: Wait) -> tuple[float, float]:
    """Return the device's and the host's seconds for a call, the medians of several rounds.

    The host's are those that it takes to queue a call. The device starts behind other work, and so
    does not wait for the host, unless calls wait for the device themselves.
    """
    queued: list[float] = []

    def queue() -> None:
        start = time.perf_counter()
        for i in range(CALLS):
            step(i)
        queued.append((time.perf_counter() - start) / CALLS)

    for _ in range(2):
        queue()
    wait()
    queued.clear()
    device = [runtime().seconds(queue, 0, AHEAD) / CALLS for _ in range(ROUNDS)]
    wait()
    return statistics.median(device), statistics.median(queued)


@functools.cache
def batches(distribution: str) -> list[Any]:
    """Return index batches: "uniform", or "zipf" with exponent 1.05 over shuffled rows."""
    rng = np.random.default_rng(0)
    if distribution == "uniform":
        return [rng.integers(0, ROWS, LOOKUPS) for _ in range(BATCHES)]
    weights = np.arange(1, ROWS + 1, dtype=np.float64) ** -1.05
    cumulative = np.cumsum(weights) / weights.sum()
    shuffled = rng.permutation(ROWS)
    ranks = [np.searchsorted(cumulative, rng.random(LOOKUPS)) for _ in range(BATCHES)]
    return [shuffled[np.minimum(rank, ROWS - 1)] for rank in ranks]


def floor_seconds(moved: Bytes, rows: int) -> float | None:
    """Return the time of the floor on this GPU, None if its memory's speed is not known."""
    from mpembed.devices import cuda_devices

    known = measured(cuda_devices()[0]["name"])
    return moved.floor * rows / known.memory if known else None


def ours(precision: str, dim: int, optimizer: str, **more: Any) -> Any:
    """Return a collection of one table on the GPU."""
    placement = {"placement": more.pop("placement")} if "placement" in more else {}
    table = mpe.TableConfig("t", ROWS, dim, precision=precision, **placement)
    chosen = workloads.OPTIMIZERS[optimizer](lr=0.01)
    return mpe.EmbeddingBagCollection([table], optimizer=chosen, device="cuda", **more)


def on_device(indices: list[Any]) -> tuple[list[Any], Any]:
    """Return batches and offsets in the GPU's memory."""
    return [mpe.to_device(x, "cuda") for x in indices], mpe.to_device(OFFSETS, "cuda")


def forward(precision: str, dim: int, indices: list[Any]) -> tuple[Step, Wait]:
    """Return mpembed's forward without training."""
    emb = ours(precision, dim, "sgd")
    there, offsets = on_device(indices)
    out = mpe.to_device(np.empty((BAGS, dim), np.float32), "cuda")

    def run(i: int) -> Any:
        return emb.forward(there[i % BATCHES], offsets, out=out, training=False)

    return run, emb.check


def train(
    precision: str, dim: int, optimizer: str, indices: list[Any], **more: Any
) -> tuple[Step, Wait]:
    """Return mpembed's forward and fused backward."""
    emb = ours(precision, dim, optimizer, **more)
    there, offsets = on_device(indices)
    grad = np.random.default_rng(1).standard_normal((BAGS, dim)).astype(np.float32)
    on_gpu = mpe.to_device(grad, "cuda")

    def run(i: int) -> None:
        emb.forward(there[i % BATCHES], offsets)
        emb.backward(on_gpu)

    return run, emb.check


def convert(operation: str, precision: str, dim: int) -> tuple[Step, Wait]:
    """Return the quantization or dequantization of a matrix."""
    x = np.random.default_rng(2).standard_normal((BAGS, dim)).astype(np.float32)
    values = mpe.to_device(x, "cuda")
    rows = mpe.ops.quantize(values, precision)
    last: list[Any] = []

    def run(i: int) -> None:
        if operation == "quantize":
            last[:] = [mpe.ops.quantize(values, precision, out=rows)]
        else:
            last[:] = [mpe.ops.dequantize(rows, precision, dim, out=values)]

    return run, lambda: small_copy(last[0])


def small_copy(tensor: Any) -> Any:
    """Wait for the work on a tensor by copying it."""
    return tensor.numpy()


def torch_forward(dim: int, indices: list[Any]) -> tuple[Step, Wait]:
    """Return the forward of torch.nn.EmbeddingBag (FP32)."""
    import torch

    bag = torch.nn.EmbeddingBag(ROWS, dim, mode="sum", device="cuda")
    offsets = torch.from_numpy(OFFSETS[:-1]).cuda()
    tensors = [torch.from_numpy(x).cuda() for x in indices]

    def run(i: int) -> Any:
        with torch.no_grad():
            return bag(tensors[i % BATCHES], offsets)

    return run, torch.cuda.synchronize


def fbgemm(
    precision: str, dim: int, optimizer: str, indices: list[Any], backward: bool
) -> tuple[Step, Wait]:
    """Return FBGEMM's forward, with its fused backward if that is asked for."""
    import torch

    bag = fbgemm_peer.operator([(ROWS, dim)], precision, optimizer, 0.01, gpu=True)
    offsets = torch.from_numpy(OFFSETS).cuda()
    tensors = [torch.from_numpy(x).cuda() for x in indices]
    grad = torch.randn(BAGS, dim, device="cuda")

    def run(i: int) -> None:
        out = bag(tensors[i % BATCHES], offsets)
        if backward:
            out.backward(grad)

    return run, torch.cuda.synchronize
