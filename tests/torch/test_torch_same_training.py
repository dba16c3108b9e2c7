"""A module and PyTorch's own, trained on the same sparse batches, stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import kinds
import torch
from oracles import SETTINGS, error
from torch_modules import CACHE
from torch_oracles import KINDS, SPARSE, TorchOracle

from mpembed import torch as mt

pytestmark = pytest.mark.torch
ROWS, DIM, BAGS, LR = 40, 9, 6, 0.05


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """PyTorch's threads spin while they wait, on the cores that mpembed's need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches(steps: int) -> Any:
    rng = np.random.default_rng(2)
    for _ in range(steps):
        lengths = rng.integers(0, 4, BAGS)
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        indices = torch.from_numpy(rng.integers(0, ROWS, lengths.sum()))
        factors = torch.from_numpy(rng.standard_normal((BAGS, DIM), np.float32))
        yield indices, torch.from_numpy(offsets), factors


def module(kind: str, mode: str, cache: Any) -> mt.EmbeddingBag:
    options: dict[str, Any] = {"mode": mode, "precision": "fp32", "cache": cache}
    return mt.EmbeddingBag(ROWS, DIM, optimizer=kinds.make(kind, LR), **options)


def values(made: mt.EmbeddingBag) -> Any:
    return made.tables.rows(made.tables.tables[0].name, np.arange(ROWS))


@pytest.mark.parametrize("cache", [None, CACHE], ids=["plain", "cached"])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_gradients_of_pytorchs_bag(kind: str, mode: str, cache: Any) -> None:
    """`torch.nn.EmbeddingBag(sparse=True)` with SparseAdam or Adagrad, a hundred steps."""
    mine = module(kind, mode, cache)
    weight = torch.tensor(values(mine))
    theirs = torch.nn.EmbeddingBag(ROWS, DIM, mode=mode, sparse=True, _weight=weight)
    optimizer = SPARSE[kind](theirs.parameters(), lr=LR, **SETTINGS[kind])
    for indices, offsets, factors in batches(100):
        for one in (mine, theirs):
            out = one(indices, offsets)
            (out * factors).sum().backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=True):
            optimizer.step()
        optimizer.zero_grad()
    assert error(values(mine), theirs.weight.detach().numpy().astype(np.float64)) < 1e-5


@pytest.mark.parametrize("cache", [None, CACHE], ids=["plain", "cached"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_rest(kind: str, cache: Any) -> None:
    """Optimizers without sparse gradients in PyTorch too: a parameter a row."""
    mine = module(kind, "sum", cache)
    theirs = TorchOracle(kind, values(mine), LR, SETTINGS[kind])
    for indices, offsets, factors in batches(100):
        (mine(indices, offsets) * factors).sum().backward()
        lengths = np.diff([*offsets.tolist(), len(indices)])
        gradient = np.zeros((ROWS, DIM))
        np.add.at(gradient, indices.numpy(), np.repeat(factors.numpy(), lengths, axis=0))
        theirs.step(gradient, np.unique(indices.numpy()))
    assert error(values(mine), theirs.w) < 1e-5
