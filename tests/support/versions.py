"""A training each of whose steps is known: what a file of any step must hold."""

from __future__ import annotations

import numpy as np
from helpers import digest

import mpembed as mpe

Collection = mpe.EmbeddingBagCollection


def make() -> Collection:
    """Return a few small tables of several dimensions, formats and optimizers, with a cache."""
    tables = [
        mpe.TableConfig("a", 300, 16, "int8"),
        mpe.TableConfig("b", 200, 16, "int4", pooling="mean"),
        mpe.TableConfig("c", 100, 5),
        mpe.TableConfig("d", 50, 5, "bf16", optimizer=mpe.Adam(0.01)),
    ]
    cache = mpe.CacheConfig(num_sets=2, ways=8, policy="lfu")
    return Collection(tables, cache=cache, optimizer=mpe.RowwiseAdagrad(0.1), seed=7)


def train(emb: Collection) -> None:
    """Train the next step; nothing but its number matters."""
    rng = np.random.default_rng(emb.step)
    bags = len(emb.tables) * 4
    indices = rng.integers(0, 50, 3 * bags)
    out = emb.forward(indices, np.arange(bags + 1) * 3)
    emb.backward(rng.standard_normal(out.shape).astype(np.float32))


class Uninterrupted:
    """The training without kills and faults: the state after each step."""

    def __init__(self) -> None:
        self.emb = make()
        self.digests = {self.emb.step: digest(self.emb)}

    def holds(self, emb: Collection) -> bool:
        """Return whether a collection is one of its states."""
        while self.emb.step < emb.step:
            train(self.emb)
            self.digests[self.emb.step] = digest(self.emb)
        return self.digests.get(emb.step) == digest(emb)
