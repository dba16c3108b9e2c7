"""Modules, batches and states that the tests of mpembed.torch share."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

import mpembed as mpe
from mpembed import torch as mt
from mpembed.collection import collection_state

CACHE = mpe.CacheConfig(num_sets=1, policy="lfu", ways=8)


def bag(**options: Any) -> mt.EmbeddingBag:
    """Return a module of 50 rows in INT4 with a small cache."""
    settings: dict[str, Any] = {
        "mode": "sum",
        "precision": "int4",
        "cache": CACHE,
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        "seed": 0,
        **options,
    }
    return mt.EmbeddingBag(50, 6, **settings)


def batch(seed: int = 0, bags: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and offsets of bags, some of them empty."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *rng.integers(0, 5, bags)])
    return torch.from_numpy(rng.integers(0, 50, int(ends[-1]))), torch.from_numpy(ends[:-1])


def ended(indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return offsets with the number of indices at their end."""
    return torch.cat([offsets, torch.tensor([len(indices)])])


def train(module: torch.nn.Module, steps: int = 4, seed: int = 0) -> list[float]:
    """Train on a few batches; return the losses."""
    losses = []
    for step in range(steps):
        loss = module(*batch(seed + step)).square().sum()
        loss.backward()
        losses.append(loss.item())
    return losses


def state(module: Any) -> dict[str, bytes]:
    """Return every byte of the tables' state, the step included."""
    arrays = module.tables.state_arrays()
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def open_batches(module: Any) -> int:
    """Return how many batches are open after a garbage collection."""
    gc.collect()
    return int(collection_state(module.tables).engine.num_open)


def updates(module: Any) -> int:
    """Return how many updates the tables have had."""
    return int(module.tables.state_arrays()["updates"].item())


# ---- several lookups in a backward pass ---------------------------------------------------------


def looked_up(module: Any, seeds: Iterable[int]) -> list[torch.Tensor]:
    """Look up the batches of some seeds."""
    return [module(*batch(seed)) for seed in seeds]


def loss_of(outs: list[torch.Tensor]) -> torch.Tensor:
    """Return a loss whose gradients are twice the outputs."""
    return torch.stack([out.square().sum() for out in outs]).sum()


def opened(module: Any, seeds: Iterable[int]) -> list[tuple[Any, mpe.Ticket]]:
    """Look up the batches of some seeds in the collection itself; return outputs and tickets."""
    batches = [batch(seed) for seed in seeds]
    return [
        module.tables.forward(indices, ended(indices, offsets), ticket=True)
        for indices, offsets in batches
    ]


def one_update(module: Any, seeds: Iterable[int]) -> None:
    """Train the collection itself with the gradients of `loss_of`."""
    module.tables.backward([(2 * out, ticket) for out, ticket in opened(module, seeds)])


# ---- collections -------------------------------------------------------------------------------

TABLES = [
    mpe.TableConfig("t0", 50, 4, precision="int4"),
    mpe.TableConfig("t1", 30, 6, precision="int8", pooling="mean"),
    mpe.TableConfig("t2", 20, 4),
]
B = 3


class Jagged:
    """A stand-in for TorchRec's KeyedJaggedTensor: the methods that modules call."""

    def __init__(self, bags: dict[str, list[list[int]]], weighted: bool = False) -> None:
        self._keys = list(bags)
        flat = [bag for bags_of_one in bags.values() for bag in bags_of_one]
        self._values = torch.tensor([i for bag in flat for i in bag], dtype=torch.int64)
        self._offsets = torch.tensor(np.cumsum([0, *map(len, flat)]), dtype=torch.int32)
        self.weights = None
        if weighted:
            self.weights = torch.linspace(-1, 2, len(self._values)).requires_grad_()

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> torch.Tensor:
        return self._values

    def offsets(self) -> torch.Tensor:
        return self._offsets

    def weights_or_none(self) -> torch.Tensor | None:
        return self.weights


BAGS = {
    "a": [[1, 2, 2], [], [49]],
    "b": [[0], [29, 3], [3]],
    "c": [[], [19, 19, 0, 7], []],
    "d": [[5], [2, 49], [1, 1]],
}
NAMES = {"t0": ["a"], "t1": ["b"], "t2": ["c"]}


def collection(**options: Any) -> mt.EmbeddingBagCollection:
    settings: dict[str, Any] = {
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        "cache": CACHE,
        "feature_names": NAMES,
        "seed": 0,
        **options,
    }
    return mt.EmbeddingBagCollection(TABLES, **settings)


def assert_refused(kind: Any, poolings: list[str], message: str) -> None:
    """Check that a module refuses tables with these poolings, and a collection of them."""
    tables = [mpe.TableConfig(f"x{n}", 3, 2, pooling=one) for n, one in enumerate(poolings)]
    core = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    with pytest.raises(ValueError, match=message):
        kind(tables, optimizer=mpe.SGD(0.1))
    with pytest.raises(ValueError, match=message):
        kind.from_collection(core)


def features(*names: str, weighted: bool = False) -> Jagged:
    return Jagged({name: BAGS[name] for name in names}, weighted)
