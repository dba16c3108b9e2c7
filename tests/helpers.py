"""What several test files need: a small collection, a batch, a digest of all state."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

import mpembed as mpe

Array = npt.NDArray[Any]


def collection(**options: Any) -> mpe.EmbeddingBagCollection:
    """Return two tables of 40 and 9 rows with a small cache."""
    settings: dict[str, Any] = {
        "cache": mpe.CacheConfig(num_sets=1, policy="lfu", ways=8),
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        **options,
    }
    tables = [
        mpe.TableConfig("a", 40, 6, precision="int4"),
        mpe.TableConfig("b", 9, 6, precision="int8", pooling="mean"),
    ]
    return mpe.EmbeddingBagCollection(tables, **settings)


def batch() -> tuple[Array, Array]:
    """Return indices and offsets of three bags a table, one of them empty."""
    indices = np.array([1, 2, 39, 2, 7, 8, 0, 8], np.int64)
    return indices, np.array([0, 2, 2, 5, 6, 7, 8], np.int64)


def train(emb: mpe.EmbeddingBagCollection, steps: int = 3) -> None:
    """Run a few steps, so that there is state to lose."""
    indices, offsets = batch()
    for _ in range(steps):
        out = emb.forward(indices, offsets)
        emb.backward(np.ones_like(out))


def digest(emb: mpe.EmbeddingBagCollection) -> str:
    """Return a hash of every array of the state."""
    hashed = hashlib.sha256()
    for name, array in sorted(emb.state_arrays().items()):
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
