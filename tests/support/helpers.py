"""What several test files need: a small collection, a digest of all state."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import on_device

import mpembed as mpe
from mpembed._bindings.contract import PIN_MASK

Array = npt.NDArray[Any]


def collection(**options: Any) -> Any:
    """Return two tables of 40 and 9 rows with a small cache, on the device in use."""
    settings: dict[str, Any] = {
        "cache": mpe.CacheConfig(num_sets=1, policy="lfu", ways=8),
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        **options,
    }
    tables = [
        mpe.TableConfig("a", 40, 6, precision="int4"),
        mpe.TableConfig("b", 9, 6, precision="int8", pooling="mean"),
    ]
    if "device" in settings:
        return mpe.EmbeddingBagCollection(tables, **settings)
    return on_device.make(tables, **settings)


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


def set_lr(emb: mpe.EmbeddingBagCollection, lr: float) -> None:
    """Set the rate of the optimizer that the tables share."""
    assert emb.optimizer is not None
    emb.optimizer.lr = lr


def digest(emb: mpe.EmbeddingBagCollection) -> str:
    """Return a hash of every array of the state."""
    hashed = hashlib.sha256()
    for name, array in sorted(emb.state_arrays().items()):
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def pinned(emb: Any) -> int:
    """Return the number of pinned slots of all caches."""
    tags = [array for name, array in emb.state_arrays().items() if name.endswith(".tags")]
    assert tags, "there is no cache"
    return int(sum(np.count_nonzero(array & np.uint64(PIN_MASK)) for array in tags))
