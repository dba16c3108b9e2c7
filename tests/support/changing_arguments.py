"""Batches whose memory changes during a call, and the calls that take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import mpembed as mpe
from mpembed import devices, ops
from mpembed._collection.packed import PackedTables

ROWS, DIM, BAGS = 50, 8, 6
REFUSALS = ValueError, IndexError, BufferError
Spoil = Callable[[Any], Any]
SPOILED_OFFSETS: dict[str, Spoil] = {
    "far": lambda a: np.r_[0, np.full(len(a) - 1, 50_000_000)],
    "below zero": lambda a: np.r_[0, np.full(len(a) - 2, -50_000_000), a[-1]],
    "falling": lambda a: a[::-1].copy(),
    "short": lambda a: np.zeros_like(a),
}
SPOILED_INDICES: dict[str, Spoil] = {
    "far": lambda a: np.full_like(a, 2**30),
    "below zero": lambda a: np.full_like(a, -(2**30)),
}


def collection(pooling: str = "sum", **options: Any) -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig(name, ROWS, DIM, pooling=pooling) for name in ("a", "b")]
    return mpe.EmbeddingBagCollection(
        tables,
        **{
            "cache": mpe.CacheConfig(num_sets=1, ways=8),
            "optimizer": mpe.SGD(lr=0.1),
            **options,
        },
    )


def batch(tables: int = 2, dtype: Any = np.int64) -> dict[str, Any]:
    """Return the arrays of a right batch."""
    random = np.random.default_rng(5)
    offsets = np.append(0, np.cumsum(random.integers(0, 6, tables * BAGS))).astype(dtype)
    n = int(offsets[-1])
    return {
        "indices": random.integers(0, ROWS, n).astype(dtype),
        "offsets": offsets,
        "weights": random.random(n, np.float32),
    }


def evaluate(emb: Any, a: dict[str, Any]) -> Any:
    return emb.forward(a["indices"], a["offsets"], a["weights"], a["out"], training=False)


def train(emb: Any, a: dict[str, Any]) -> Any:
    out, ticket = emb.forward(a["indices"], a["offsets"], a["weights"], a["out"], ticket=True)
    emb.backward(np.zeros((BAGS, 2 * DIM), np.float32), ticket)
    return out


def prefetch(emb: Any, a: dict[str, Any]) -> Any:
    emb.prefetch(a["indices"], a["offsets"]).drop()
    return np.zeros(1)


def look_up_packed(emb: Any, a: dict[str, Any]) -> Any:
    rows = [emb.export(name) for name in "ab"]
    tables = PackedTables(emb.tables, rows, devices.get("cpu").stream(None), drop=False)
    return tables.lookup(a["indices"], a["offsets"], a["weights"])


def look_up_without_tables(emb: Any, a: dict[str, Any]) -> Any:
    rows = emb.export("a")
    return ops.embedding_bag(
        rows, "fp32", DIM, a["indices"], a["offsets"], per_sample_weights=a["weights"], out=a["out"]
    )


CALLS: dict[str, tuple[Callable[[Any, dict[str, Any]], Any], int, list[str]]] = {
    "evaluation": (evaluate, 2, ["indices", "offsets", "weights", "out"]),
    "training": (train, 2, ["indices", "offsets", "weights", "out"]),
    "prefetch": (prefetch, 2, ["indices", "offsets"]),
    "packed": (look_up_packed, 2, ["indices", "offsets", "weights"]),
    "embedding_bag": (look_up_without_tables, 1, ["indices", "offsets", "weights", "out"]),
}


def spoil(array: Any, how: Callable[[Any], Any]) -> Callable[[], None]:
    wrong = how(array).astype(array.dtype)

    def change() -> None:
        array[...] = wrong

    return change


def arguments(tables: int, dtype: Any) -> dict[str, Any]:
    given = batch(tables, dtype)
    return {**given, "out": np.zeros((BAGS, tables * DIM), np.float32)}
