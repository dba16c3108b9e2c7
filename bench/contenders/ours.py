"""mpembed's entries."""

from __future__ import annotations

from typing import Any

import numpy as np
from arena import Entry
from rounds import OURS, Contender
from workloads import LR, OPTIMIZERS, Shape, Stream, gradient, stream

import mpembed as mpe


def collection(
    shape: Shape, precision: str, optimizer: str = "sgd", cache: mpe.CacheConfig | None = None
) -> mpe.EmbeddingBagCollection:
    """Return the tables of a shape."""
    tables = [
        mpe.TableConfig(f"t{t}", shape.rows, shape.dim, precision=precision)
        for t in range(shape.tables)
    ]
    chosen = OPTIMIZERS[optimizer](lr=LR)
    return mpe.EmbeddingBagCollection(tables, optimizer=chosen, cache=cache)


def forward(precision: str, batches: Stream, optimizer: str = "sgd") -> Entry:
    """Look up without training, in tables that `backward` of that optimizer may share."""
    shape = batches.shape

    def join(emb: Any) -> Contender:
        offsets, out = shape.offsets, np.empty((shape.bags, shape.width), np.float32)

        def run(i: int) -> None:
            emb.forward(batches.at(i), offsets, out=out, training=False)

        return Contender(OURS, run)

    key = (OURS, shape, precision, optimizer, None)
    return Entry(OURS, key, lambda: collection(shape, precision, optimizer), join)


def training(emb: Any, batches: Stream, whole: bool) -> Contender:
    shape = batches.shape
    offsets, grad = shape.offsets, gradient(shape)
    out = np.empty((shape.bags, shape.width), np.float32)

    def forth(i: int) -> None:
        emb.forward(batches.at(i), offsets, out=out)

    def back(_: int) -> None:
        emb.backward(grad)

    def step(i: int) -> None:
        forth(i)
        back(i)

    return Contender(OURS, step) if whole else Contender(OURS, back, prepare=forth)


def backward(precision: str, optimizer: str, batches: Stream, *, whole: bool = False) -> Entry:
    """Sort, sum and update, without a cache; with `whole`, the forward is timed too."""
    shape = batches.shape
    return Entry(
        OURS,
        (OURS, shape, precision, optimizer, None),
        lambda: collection(shape, precision, optimizer),
        lambda emb: training(emb, batches, whole=whole),
    )


def cached_step(
    precision: str, optimizer: str, batches: Stream, distribution: str, load_factor: float = 0.05
) -> Entry:
    """Forward and fused backward with an LFU cache that was warmed on as many other batches."""
    shape = batches.shape

    def build() -> Any:
        cache = mpe.CacheConfig(load_factor=load_factor, policy="lfu")
        emb = collection(shape, precision, optimizer, cache)
        warm(emb, stream(shape, distribution, seed=99))
        return emb

    key = (OURS, shape, precision, optimizer, load_factor, distribution)
    return Entry(OURS, key, build, lambda emb: training(emb, batches, whole=True))


def warm(emb: Any, batches: Stream) -> None:
    """Train on every batch once."""
    grad, offsets = gradient(batches.shape), batches.shape.offsets
    for x in batches.batches:
        emb.forward(x, offsets)
        emb.backward(grad)


def hit_rate(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> float:
    """Return the share of hits among the unique rows between two calls of `stats`."""
    hits, misses = (
        sum(after[name][count] - before[name][count] for name in after)
        for count in ("hits", "misses")
    )
    return hits / max(hits + misses, 1)
