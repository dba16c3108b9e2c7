"""The FP32 cache: finding rows, replacing dirty rows, and how the hit rate sets the speed."""

from __future__ import annotations

from typing import Any

import cases
import limits
import numpy as np
import ours
import peers
import pytest
import targets
import workloads
from arena import Entry
from rounds import OURS, Contender
from workloads import Array, Shape, Stream

import mpembed as mpe

OPTIMIZER = "rowwise_adagrad"
LRU = mpe.CacheConfig(load_factor=0.05, policy="lru")


def trained(shape: Shape, precision: str, batches: Stream) -> Any:
    """Return a collection whose LRU cache is full of dirty rows."""
    emb = ours.collection(shape, precision, OPTIMIZER, LRU)
    ours.warm(emb, batches)
    return emb


@pytest.mark.parametrize(
    "case", cases.product(workloads.DISTRIBUTIONS, targets.THREADS), ids=cases.name
)
def test_lookup(benchmark: Any, arena: Any, case: tuple[str, int]) -> None:
    distribution, threads = case
    shape = cases.shape_of(arena, "4Mx64")
    batches = workloads.stream(shape, distribution)
    emb = trained(shape, "int4", workloads.stream(shape, distribution, seed=99))
    tags = emb.state_arrays()["cache.64.tags"]
    slots = np.empty(shape.lookups, np.int32)

    def join(_: None) -> Contender:
        return Contender(OURS, lambda i: mpe.ops.cache_lookup(tags, batches.at(i), out=slots))

    entries = [
        Entry(OURS, (OURS, "tags"), lambda: None, join),
        limits.sets(tags.shape[0], tags.shape[1] * 8, shape.lookups, threads),
    ]
    what = {"operation": "cache lookup", "distribution": distribution, "threads": threads}
    arena.compare(benchmark, "cache", what, shape.lookups, entries)


def fresh_rows(shape: Shape, count: int) -> Stream:
    """Return batches that share no row."""
    order = np.random.default_rng(4).permutation(shape.rows)[: count * shape.lookups]
    return Stream(shape, list(order.reshape(count, shape.lookups)))


class Inserting:
    """Prefetches batches of rows that are not cached; each is trained on before the next comes."""

    def __init__(self, emb: Any, batches: Stream) -> None:
        self.emb, self.batches, self.next = emb, batches, 0
        self.pending: Array | None = None
        self.grad, self.offsets = workloads.gradient(batches.shape), batches.shape.offsets

    def train_last(self, _: int) -> None:
        if self.pending is not None:
            self.emb.forward(self.pending, self.offsets)
            self.emb.backward(self.grad)

    def insert(self, _: int) -> None:
        self.pending = self.batches.at(self.next)
        self.next += 1
        self.emb.prefetch(self.pending, self.offsets)


def finding(emb: Any, batch: Array, offsets: Array) -> Contender:
    """Return prefetches of a cached batch: the same call without an insertion."""

    def run(_: int) -> None:
        emb.prefetch(batch, offsets)

    return Contender("prefetch of hits", run, prepare=lambda _: emb.drop_prefetched())


@pytest.mark.parametrize("case", cases.product(["int8", "int4"], targets.THREADS), ids=cases.name)
def test_insert(benchmark: Any, arena: Any, case: tuple[str, int]) -> None:
    precision, threads = case
    shape = Shape(1, 400_000 if arena.quick else 4_000_000, 64, 2 if arena.quick else 20)
    count = 60  # more rows than the cache holds, so a batch that comes again is not cached
    batches = fresh_rows(shape, count)
    emb, other = (trained(shape, precision, fresh_rows(shape, 8)) for _ in range(2))
    inserting = Inserting(emb, batches)
    inserting.next = 8
    last = fresh_rows(shape, 8).at(7)
    entries = [
        Entry(
            OURS,
            (OURS, "insert", precision),
            lambda: None,
            lambda _: Contender(OURS, inserting.insert, prepare=inserting.train_last),
        ),
        Entry(
            "prefetch of hits",
            ("hits", precision),
            lambda: None,
            lambda _: finding(other, last, shape.offsets),
        ),
    ]
    before = emb.stats()["t0"]
    what = {"operation": "cache insert", "precision": precision, "threads": threads}
    arena.compare(benchmark, "cache", what, shape.lookups, entries)
    counts = {name: n - before[name] for name, n in emb.stats()["t0"].items()}
    benchmark.extra_info["counts"] = counts
    assert counts["evictions"] >= 0.99 * counts["misses"] >= 0.99 * counts["unique"]
    assert counts["write_backs"] >= 0.99 * counts["evictions"]


def mixed(shape: Shape, hot: Array, share: float, seed: int) -> Stream:
    """Return batches with a share of hot rows, the rest uniform."""
    rng = np.random.default_rng([8, seed])
    batches = []
    for _ in range(workloads.BATCHES):
        drawn = rng.integers(0, shape.rows, shape.lookups)
        chosen = rng.random(shape.lookups) < share
        drawn[chosen] = rng.choice(hot, int(chosen.sum()))
        batches.append(drawn)
    return Stream(shape, batches)


@pytest.mark.parametrize(
    "case", cases.product([0.0, 0.25, 0.5, 0.75, 0.9, 1.0], targets.THREADS), ids=cases.name
)
def test_hit_rate(benchmark: Any, arena: Any, case: tuple[float, int]) -> None:
    share, threads = case
    shape = cases.shape_of(arena, "4Mx64")
    hot = np.random.default_rng(5).permutation(shape.rows)[: shape.rows // 40]
    batches = mixed(shape, hot, share, threads)
    seen: list[Any] = []  # the collection, and its statistics before

    def build() -> Any:
        cache = mpe.CacheConfig(load_factor=0.05, policy="lfu")
        emb = ours.collection(shape, "int4", OPTIMIZER, cache)
        ours.warm(emb, mixed(shape, hot, 1.0, 9))
        return emb

    def join(emb: Any) -> Contender:
        seen[:] = [emb, emb.stats()]
        return ours.training(emb, batches, whole=True)

    entries = [
        Entry(OURS, (OURS, shape, "hot", share, threads), build, join),
        peers.fbgemm_backward("fp32", OPTIMIZER, batches, whole=True),
        limits.modify("int4", OPTIMIZER, batches, threads, whole=True),
    ]
    what = {"operation": "step", "share": share, "precision": "int4", "threads": threads}
    arena.compare(benchmark, "cache hit rate", what, shape.lookups, entries, fresh=True)
    emb, before = seen
    benchmark.extra_info["hit_rate"] = ours.hit_rate(before, emb.stats())
