"""Collections and the reference side by side, and a few steps that train both."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
from reference import RefCollection
from reference.pair import Batches, Pair

import mpembed as mpe

FORMATS = list(mpe.registry.FORMATS)
POOLINGS = list(mpe.registry.POOLINGS)
POLICIES = [None, *mpe.registry.POLICIES]
ROUNDINGS = list(mpe.registry.ROUNDINGS)


def make_cache(policy: str | None, num_sets: int = 1, ways: int = 8) -> Any:
    """Return the settings of a small cache; None is none."""
    return None if policy is None else mpe.CacheConfig(num_sets=num_sets, policy=policy, ways=ways)


def every_format() -> list[Any]:
    """Return tables of every format with every pooling, in four dimensions."""
    tables = []
    for i, precision in enumerate(FORMATS):
        for j, pooling in enumerate(POOLINGS):
            name, rows, dim = f"{precision}_{pooling}", 5 + 7 * ((3 * i + j) % 5), (3, 8, 21, 33)
            init = (None, ("normal", 0.3), "zeros", ("uniform", -0.5, 2.0))[(i + j) % 4]
            tables.append(mpe.TableConfig(name, rows, dim[(i + j) % 4], precision, pooling, init))
    return tables


def make_pair(tables: list[Any], cache: Any, optimizer: Any, **options: Any) -> Pair:
    """Return the collection on the device in use, and the reference."""
    options = {"on_nonfinite": "skip"} | options
    emb = on_device.make(tables, cache=cache, optimizer=optimizer, **options)
    return Pair(emb, RefCollection(tables, cache, optimizer, **options))


def one_table(precision: str, policy: str | None, optimizer: Any, **options: Any) -> Pair:
    """Return a pair of one table of 10 columns, in a cache of 16 slots."""
    rows = options.pop("rows", 300)
    return make_pair(
        [mpe.TableConfig("a", rows, 10, precision)], make_cache(policy, 2), optimizer, **options
    )


def train(pair: Pair, batches: Batches, steps: int, batch: int = 4, longest: int = 4) -> None:
    """Steps with and without weights, some non-finite gradients, an evaluation and a flush."""
    for step in range(steps):
        indices, offsets = batches.inputs(batch, longest)
        weights = batches.weights(len(indices)) if step % 2 else None
        out = pair.forward(indices, offsets, weights)
        pair.backward(batches.grad(out, nonfinite=0.01 if step == 2 else 0.0))
        if step == steps // 2:
            pair.forward(*batches.inputs(batch, longest), training=False)
            pair.flush()


def count(pair: Pair, name: str) -> int:
    """Return a statistic of all tables together."""
    return int(np.sum([stats[name] for stats in pair.emb.stats().values()]))
