"""The embedding step of a DLRM, forward and fused backward: eager, as a graph, kernel by kernel.

Times are the device's, by events. `eager` starts behind work that keeps the device busy while the
host queues the steps, so it has waits for the host only if the host is far behind; `host` is the
host's time to queue a step. Without options: 26 tables of a million rows, 65,536 bags.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import gpu_figures
import gpu_kernels
import numpy as np
from gpu_sizes import AHEAD, size

import mpembed as mpe
from mpembed_gpu import traffic
from mpembed_gpu.devices import measured
from mpembed_gpu.registry import FORMATS, OPTIMIZERS
from mpembed_gpu.runtime import ON_DEVICE, Graph, Runtime

# What is compared: format, share of the rows that are cached, policy.
SETTINGS: dict[str, tuple[str, float, str | None]] = {
    "int8 + 5% lru": ("int8", 0.05, "lru"),
    "int8": ("int8", 0.0, None),
    "fp16": ("fp16", 0.0, None),
    "int4 + 1% lfu": ("int4", 0.01, "lfu"),
}
OPTIMIZER = "rowwise_adagrad"
EXPONENT = 1.05  # of the rows' frequencies
BATCHES, STEPS, ROUNDS = 2, 10, 3


def draw(rng: np.random.Generator, rows: int, n: int) -> Any:
    """Return n rows; their frequencies follow a power law, and the frequent lie apart."""
    power = 1 - EXPONENT
    ranks = ((((rows + 1.0) ** power - 1) * rng.random(n) + 1) ** (1 / power)).astype(np.int64) - 1
    return np.minimum(ranks, rows - 1) * 2_654_435_761 % rows


class Inputs:
    """Batches of `pool` rows a bag, the output and its gradient, in the device's memory."""

    def __init__(self, options: argparse.Namespace, pool: int) -> None:
        rng = np.random.default_rng(0)
        self.pool, self.lookups = pool, options.tables * options.bags * pool
        self.batches = [
            mpe.to_device(draw(rng, options.rows, self.lookups), "cuda") for _ in range(BATCHES)
        ]
        self.static = mpe.to_device(np.zeros(self.lookups, np.int64), "cuda")  # of a graph
        self.offsets = mpe.to_device(np.arange(0, self.lookups + 1, pool), "cuda")
        shape = (options.bags, options.tables * options.dim)
        few = rng.standard_normal(100_003, np.float32) * np.float32(0.01)
        self.grad = mpe.to_device(np.resize(few, shape), "cuda")
        self.out = mpe.to_device(np.zeros(shape, np.float32), "cuda")


class Model:
    """A collection and its stream."""

    def __init__(self, runtime: Runtime, options: argparse.Namespace, name: str, inputs: Inputs):
        self.runtime, self.inputs, self.stream = runtime, inputs, runtime.stream()
        self.precision, share, policy = SETTINGS[name]
        self.title = f"{name}, L={inputs.pool}, {options.placement}"
        self.facts = {"setting": name, "pool": inputs.pool, "placement": options.placement}
        tables = [
            mpe.TableConfig(
                f"t{i}", options.rows, options.dim, self.precision, placement=options.placement
            )
            for i in range(options.tables)
        ]
        cache = mpe.CacheConfig(load_factor=share, policy=policy) if policy else None
        self.emb: Any = mpe.EmbeddingBagCollection(
            tables, optimizer=mpe.RowwiseAdagrad(lr=0.01), cache=cache, device="cuda"
        )
        runtime.follow(self.stream, 0)

    def step(self, indices: Any) -> None:
        """Queue a forward and a backward."""
        inputs = self.inputs
        self.emb.forward(indices, inputs.offsets, out=inputs.out, stream=self.stream)
        self.emb.backward(inputs.grad, stream=self.stream)

    def eager(self, steps: int) -> float:
        """Queue steps; return the host's seconds a step."""
        start = time.perf_counter()
        for i in range(steps):
            self.step(self.inputs.batches[i % BATCHES])
        return (time.perf_counter() - start) / steps

    def captured(self) -> Graph:
        """Return a graph of a step on the static batch."""
        with self.runtime.capture(self.stream) as made:
            self.step(self.inputs.static)
        return made[0]

    def replay(self, graph: Graph, steps: int) -> None:
        """Queue launches, each after a copy of its batch."""
        static = self.inputs.static
        for i in range(steps):
            batch = self.inputs.batches[i % BATCHES]
            self.runtime.copy(static.address, batch.address, batch.nbytes, ON_DEVICE, self.stream)
            graph.launch(self.stream)

    def seconds(self, work: Callable[[], object], options: argparse.Namespace) -> list[float]:
        """Return the device's times a step of several rounds."""
        times = [
            self.runtime.seconds(work, self.stream, options.ahead) / options.steps
            for _ in range(ROUNDS)
        ]
        self.emb.check()
        return times


def floor_seconds(model: Model, dim: int, unique: int) -> float | None:
    """Return the time of the bytes that the step must move, None if the memory's speed is unknown.

    It is that of tables without a cache.
    """
    from mpembed.devices import cuda_devices

    known = measured(cuda_devices()[0]["name"])
    if known is None:
        return None
    fmt = next(one for one in FORMATS if one.name == model.precision)
    optimizer = next(one for one in OPTIMIZERS if one.name == OPTIMIZER)
    lookups, columns = model.inputs.lookups, 4 * dim
    # A row counts once, however many lookups it has, and so do a bag's sum and its gradient.
    of_bags = 2 * columns * lookups / model.inputs.pool
    lookup = traffic.forward(fmt, dim).floor - fmt.row(dim) - columns / traffic.POOL
    row = fmt.row(dim) + traffic.update(fmt, dim, optimizer).floor - columns / traffic.POOL
    total = of_bags + lookups * (lookup + traffic.dedup().floor) + unique * row
    return float(total) / known.memory


def counts(emb: Any) -> dict[str, int]:
    """Return the statistics of all tables together."""
    of_tables = emb.stats().values()
    return {key: sum(table[key] for table in of_tables) for key in ("unique", "hits")}


def measure(model: Model, options: argparse.Namespace) -> None:
    """Time one setting, eager and as a graph; each figure is kept as soon as there is one."""
    emb, lookups = model.emb, model.inputs.lookups
    model.eager(3 * BATCHES)
    before = counts(emb)
    model.eager(BATCHES)
    unique, hits = (value - before[key] for key, value in counts(emb).items())
    unique //= BATCHES
    host: list[float] = []
    times = model.seconds(lambda: host.append(model.eager(options.steps)), options)
    seconds, floor = statistics.median(times), floor_seconds(model, options.dim, unique)
    said = f"floor {floor * 1e3:.3f} ms" if floor else "floor unknown"
    gpu_figures.add(
        "dlrm",
        f"{model.title}: eager {seconds * 1e3:.3f} ms, host {min(host) * 1e3:.3f} ms, "
        f"{seconds / lookups * 1e9:.3f} ns a lookup, {said}, "
        f"{hits / BATCHES / max(1, unique):.1%} of {unique} unique rows hit",
        **model.facts,
        mode="eager",
        seconds=times,
        host_seconds=host,
        lookups=lookups,
        unique=unique,
        floor_seconds=floor,
    )
    if not model.runtime.has_graphs:
        gpu_figures.add("dlrm", f"{model.title}: no graph: the runtime knows none")
        return
    graph = model.captured()
    model.replay(graph, BATCHES)
    times = model.seconds(lambda: model.replay(graph, options.steps), options)
    gpu_figures.add(
        "dlrm",
        f"{model.title}: graph {statistics.median(times) * 1e3:.3f} ms with the copy of the "
        f"batch, {graph.nodes} nodes",
        **model.facts,
        mode="graph",
        seconds=times,
        nodes=graph.nodes,
    )


def profile(model: Model, options: argparse.Namespace) -> None:
    """Say which kernels take the time, in a graph if there may be one."""
    model.eager(3 * BATCHES)

    def eager() -> None:
        model.eager(options.steps)
        model.emb.check()

    rows, mode = [], "graph"
    if model.runtime.has_graphs:
        graph = model.captured()

        def replay() -> None:
            model.replay(graph, options.steps)
            model.emb.check()

        replay()
        rows = gpu_kernels.profile(replay)
    if not rows:
        rows, mode = gpu_kernels.profile(eager), "eager"
    table = gpu_kernels.text(rows, options.steps)
    text = f"{model.title}, {mode}, a step:\n{table}"
    gpu_figures.add("kernels", text, **model.facts, mode=mode, steps=options.steps, kernels=rows)


def count_one(model: Model, options: argparse.Namespace) -> None:
    """Take one step that ncu sees."""
    model.eager(3 * BATCHES)
    model.emb.check()
    model.runtime("cudaProfilerStart")
    model.eager(1)
    model.emb.check()
    model.runtime("cudaProfilerStop")


def arguments() -> argparse.Namespace:
    """Return sizes and choices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"tables": 26, "rows": size(1_000_000), "bags": size(1 << 16), "dim": 128}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lookups", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--ahead", type=int, default=AHEAD, help="bytes to fill before a timing")
    parser.add_argument("--placement", choices=("device", "host"), default="device")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--cached", action="store_true", help="only the settings with a cache")
    parser.add_argument("--counted", action="store_true", help="one step, for ncu")
    parser.add_argument("--profile", action="store_true", help="the kernels' times instead")
    options = parser.parse_args()
    if options.cached:
        options.settings = [name for name in options.settings if SETTINGS[name][2]]
    return options


def main() -> int:
    """Measure all settings; return how many failed."""
    options, failed = arguments(), 0
    if options.profile:
        reason = gpu_kernels.missing()
        if reason is not None:
            gpu_figures.add("kernels", f"no table: {reason}")
            return 1
        gpu_kernels.profile(lambda: None)  # a graph that is older than the profiler is not seen
    work = profile if options.profile else count_one if options.counted else measure
    for pool in options.lookups:
        inputs = Inputs(options, pool)
        for name in options.settings:
            runtime = Runtime()
            try:
                model = Model(runtime, options, name, inputs)
                work(model, options)
            except Exception:  # the other settings' figures are wanted all the more
                traceback.print_exc()
                gpu_figures.add("dlrm", f"{name}, L={pool}: FAILED, see the log")
                failed += 1
            runtime.close()
    return failed


if __name__ == "__main__":
    sys.exit(main())
