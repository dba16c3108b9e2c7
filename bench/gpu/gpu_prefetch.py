"""Prefetch the next batch on a second stream while the first one multiplies matrices.

Each round multiplies matrices, as a model's dense layers would, and trains a batch. The prefetch of
the next batch runs beside the product on a stream of its own, or it is left out, and the forward
admits the rows. What it saves is compared with the time of a prefetch alone. Times are by events.

The prefetch beside the product is measured twice: on streams of the same priority, and with product
and training on one of the highest, whose blocks start before the prefetch's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import gpu_figures
import gpu_kernels
import numpy as np
from gpu_dlrm import SETTINGS, draw
from gpu_sizes import AHEAD, size

import mpembed as mpe
from mpembed_gpu.runtime import ON_DEVICE, Runtime

ROUNDS, BATCHES = 3, 4


def matrix_product(runtime: Runtime, stream: int, size: int) -> Callable[[], object]:
    """Return what queues a BF16 matrix product of PyTorch on the stream."""
    import torch

    there = torch.cuda.ExternalStream(stream)
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    torch.cuda.synchronize()

    def multiply() -> None:
        with torch.cuda.stream(there):
            torch.mm(a, b, out=out)

    return multiply


def device_copy(runtime: Runtime, stream: int, size: int) -> Callable[[], object]:
    """Return what queues a copy of `size` squared two-byte values, for want of PyTorch."""
    a, b = runtime.memory(2 * size * size), runtime.memory(2 * size * size)
    return lambda: runtime.copy(b.value, a.value, 2 * size * size, ON_DEVICE, stream)


class Loop:
    """A collection in training, and other work on its stream."""

    def __init__(self, runtime: Runtime, options: argparse.Namespace, setting: str, place: str):
        self.runtime, self.main, self.side = runtime, runtime.stream(), runtime.stream()
        precision, share, policy = SETTINGS[setting]
        self.title = f"{setting}, {place}"
        table = mpe.TableConfig("t", options.rows, options.dim, precision, placement=place)
        assert policy is not None
        self.emb: Any = mpe.EmbeddingBagCollection(
            [table],
            optimizer=mpe.RowwiseAdagrad(lr=0.01),
            cache=mpe.CacheConfig(load_factor=share, policy=policy),
            device="cuda",
        )
        rng, lookups = np.random.default_rng(0), options.bags * options.pool
        shape = (options.bags, options.dim)
        self.batches = [
            mpe.to_device(draw(rng, options.rows, lookups), "cuda") for _ in range(BATCHES)
        ]
        self.offsets = mpe.to_device(np.arange(0, lookups + 1, options.pool), "cuda")
        self.grad = mpe.to_device(rng.standard_normal(shape, np.float32) * np.float32(0.01), "cuda")
        self.out = mpe.to_device(np.zeros(shape, np.float32), "cuda")
        for stream in (self.main, self.side):
            runtime.follow(stream, 0)

    def go_first(self) -> None:
        """Train on a stream of the highest priority from now on."""
        before, self.main = self.main, self.runtime.stream(first=True)
        self.runtime.follow(self.main, before)

    def prefetch(self, i: int) -> Any:
        """Queue the admission of batch i on the second stream."""
        return self.emb.prefetch(self.batches[i % BATCHES], self.offsets, stream=self.side)

    def train(self, i: int) -> None:
        """Queue a forward and a backward of batch i."""
        batch = self.batches[i % BATCHES]
        self.emb.forward(batch, self.offsets, out=self.out, stream=self.main)
        self.emb.backward(self.grad, stream=self.main)

    def prefetches(self, steps: int) -> None:
        """Queue prefetches that are given up, and let the main stream wait for them."""
        self.runtime.follow(self.side, self.main)
        for i in range(steps):
            self.prefetch(i).drop()
        self.runtime.follow(self.main, self.side)

    def rounds(self, work: Callable[[], object], steps: int, *, ahead: bool) -> None:
        """Queue rounds of other work and a batch, whose prefetch runs beside the work or not."""
        for i in range(steps):
            if ahead:
                self.prefetch(i)  # it waits for the update of the batch before, not for the work
            work()
            self.train(i)

    def seconds(self, queue: Callable[[], object], options: argparse.Namespace) -> float:
        """Return the median time of what is queued, a step."""
        queue()
        times = [self.runtime.seconds(queue, self.main, options.ahead) for _ in range(ROUNDS)]
        self.emb.check()
        return statistics.median(times) / int(options.steps)


Make = Callable[[Runtime, int, int], Callable[[], object]]


def measure(loop: Loop, make: Make, options: argparse.Namespace) -> None:
    """Compare the rounds with a prefetch and without."""
    steps, one = options.steps, make(loop.runtime, loop.main, options.size)
    loop.rounds(one, 2 * BATCHES, ahead=False)
    loop.emb.check()
    prefetch = loop.seconds(lambda: loop.prefetches(steps), options)
    product = loop.seconds(lambda: [one() for _ in range(steps)], options)
    repeats = max(1, math.ceil(prefetch / product))  # or the prefetch would outlast the work

    def work() -> None:
        for _ in range(repeats):
            one()

    def rounds(*, ahead: bool) -> float:
        return loop.seconds(lambda: loop.rounds(work, steps, ahead=ahead), options)

    figures = {"prefetch": prefetch, "work": repeats * product, "without": rounds(ahead=False)}
    figures["beside"] = rounds(ahead=True)
    loop.go_first()
    one = make(loop.runtime, loop.main, options.size)
    figures["behind"] = rounds(ahead=True)
    times = ", ".join(f"{name} {value * 1e3:.3f} ms" for name, value in figures.items())
    saved, later = (
        (figures["without"] - figures[name]) / prefetch for name in ("beside", "behind")
    )
    text = f"{loop.title}: {times}; saved {saved:.0%} of the prefetch, {later:.0%} behind the work"
    facts = {"repeats": repeats, "saved": saved, "saved_behind": later}
    gpu_figures.add("prefetch", text, title=loop.title, **facts, **figures)


def main() -> int:
    """Measure with the table on the device and in host memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"rows": size(10_000_000), "bags": size(1 << 16), "dim": 128, "pool": 4}
    defaults |= {"steps": 8, "size": size(8192, 64), "ahead": AHEAD}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--beside", choices=("product", "copy"), default="product")
    options = parser.parse_args()
    if options.beside == "product" and gpu_kernels.missing() is not None:
        print("no PyTorch that sees a GPU to multiply matrices with: --beside=copy", flush=True)
        options.beside = "copy"
    make: Make = matrix_product if options.beside == "product" else device_copy
    for place in ("host", "device"):
        runtime = Runtime()
        loop = Loop(runtime, options, "int8 + 5% lru", place)
        measure(loop, make, options)
        runtime.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
