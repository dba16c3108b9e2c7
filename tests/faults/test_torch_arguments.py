"""Tensors without values in memory, and what is no tensor: an error before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import mpembed as mpe
from mpembed import torch as modules

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

ODD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "meta": (lambda x: x.to("meta"), "meta"),
    "sparse": (lambda x: x.to_sparse(), "torch.sparse_coo.*to_dense"),
    "nested": (lambda x: torch.nested.nested_tensor([x]), "nested"),
    "array": (lambda x: x.numpy(), "must be a tensor, got ndarray"),
}


def bag(**options: Any) -> Any:
    return modules.EmbeddingBag(10, 4, optimizer=mpe.SGD(0.1), mode="sum", **options)


def bags() -> Any:
    tables = [mpe.TableConfig("a", 10, 4)]
    return modules.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))


def frozen() -> Any:
    return next(modules.freeze(torch.nn.Sequential(bag())).children())


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("make", [bag, bags, frozen])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_arguments_that_are_not_dense(make: Callable[[], Any], kind: str, place: int) -> None:
    module, (turn, text) = make(), ODD[kind]
    if kind == "nested" and place == 0:
        pytest.skip("nested indices have an error of their own")
    offsets = torch.tensor([0, 4] if make is bags else [0, 2])
    given = [torch.zeros(4, dtype=torch.int64), offsets, torch.ones(4)]
    right = module(*given)
    given[place] = turn(given[place])
    if kind == "array" and place == 0:
        text = "tensor.*got ndarray"
    with pytest.raises((TypeError, BufferError), match=text):
        module(*given)
    given[place] = [torch.zeros(4, dtype=torch.int64), offsets, torch.ones(4)][place]
    assert torch.equal(module(*given), right)


@pytest.mark.parametrize("kind", ["meta", "sparse", "nested"])
def test_a_state_that_is_not_dense(kind: str) -> None:
    module, (turn, text) = bag(cache=mpe.CacheConfig(num_sets=1, ways=8)), ODD[kind]
    before = module.tables.rows("table", np.arange(10))
    right = module.state_dict()
    states = [{**right, name: turn(value)} for name, value in right.items()]
    states.append({"weight": turn(torch.zeros(10, 4))})
    for state in states:
        with pytest.raises(RuntimeError, match=f"EmbeddingBag: .*{text}"):
            module.load_state_dict(state)
    with pytest.raises(ValueError, match=text):
        module.weight = turn(torch.zeros(10, 4))
    assert np.array_equal(module.tables.rows("table", np.arange(10)), before)
