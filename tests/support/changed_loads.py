"""Collections that are saved and loaded with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mpembed as mpe

Cache = mpe.CacheConfig
load = mpe.EmbeddingBagCollection.load
ROWS, DIM = {"a": 40, "b": 90}, 6
SMALL = Cache(load_factor=0.2, policy="lru", ways=8)


def make(
    precision: str = "fp32",
    optimizer: Any = None,
    cache: Cache | None = SMALL,
    rows: dict[str, int] = ROWS,
    **options: Any,
) -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig(name, count, DIM, precision) for name, count in rows.items()]
    optimizer = mpe.Adam(0.1) if optimizer is None else optimizer
    options.setdefault("rounding", "stochastic")
    return mpe.EmbeddingBagCollection(tables, optimizer=optimizer, cache=cache, seed=5, **options)


def train(emb: mpe.EmbeddingBagCollection, start: int, stop: int) -> list[Any]:
    """Steps on the rows that every size of the tables has."""
    outputs = []
    for step in range(start, stop):
        rng = np.random.default_rng(step)
        ids = np.concatenate([rng.integers(0, rows, 24) for rows in ROWS.values()])
        outputs.append(emb.forward(ids, np.arange(0, 49, 4)))
        emb.backward(rng.standard_normal(outputs[-1].shape).astype(np.float32))
    return outputs


def values(emb: mpe.EmbeddingBagCollection, least: dict[str, int] = ROWS) -> dict[str, Any]:
    """Return the rows and states of all tables, wherever they are."""
    found: dict[str, Any] = {}
    for name, count in least.items():
        found[name] = emb.rows(name, np.arange(count))
        states = emb.state(name, np.arange(count))
        found |= {f"{name}.{state}": array for state, array in states.items()}
    return found


def saved(emb: mpe.EmbeddingBagCollection, folder: Path, steps: int = 6) -> Path:
    train(emb, 0, steps)
    emb.save(folder / "saved")
    return folder / "saved"
