"""The way back: PyTorch's embeddings with the rows as they are now."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch_modules import CACHE, bag, batch, collection, state, train

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


class Model(nn.Module):
    def __init__(self, mode: str = "sum", last: bool = False) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 6, mode=mode, include_last_offset=last)
        self.word = nn.Embedding(40, 4)
        self.head = nn.Linear(10, 1)

    def forward(self, bags: torch.Tensor, offsets: torch.Tensor, ids: torch.Tensor) -> Any:
        pooled = self.bag(bags, offsets)
        return self.head(torch.cat([pooled, self.word(ids)], dim=1))


def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    bags, offsets = batch()
    if model.bag.include_last_offset:
        offsets = torch.cat([offsets, torch.tensor([len(bags)])])
    return bags, offsets, torch.tensor([3, 3, 39, 0, 7])


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_a_trained_model_gives_the_same_after_restore(
    mode: str, last: bool, precision: str
) -> None:
    model = Model(mode, last)
    mt.convert(model, precision=precision, cache=CACHE, optimizer=mpe.SGD(lr=0.1), verbose=False)
    arguments = inputs(model)
    for _ in range(3):
        model(*arguments).square().sum().backward()
    with torch.no_grad():
        trained = model(*arguments)
    assert mt.restore(model) is model
    assert type(model.bag) is nn.EmbeddingBag
    assert type(model.word) is nn.Embedding
    torch.testing.assert_close(model(*arguments), trained, rtol=1e-6, atol=1e-6)
    original = Model(mode, last)
    assert original.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(original(*arguments), model(*arguments))


def test_restored_weights_train_and_convert_again() -> None:
    model: Any = nn.Sequential(mt.restore(bag()))
    before = model[0].weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    model[0](*batch()).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    mt.convert(model, precision="fp32", verbose=False)
    torch.testing.assert_close(mt.restore(model)[0].weight.detach(), before)  # type: ignore[index]


def test_modes_types_and_sharing_are_kept() -> None:
    word = mt.Embedding(9, 4, optimizer=mpe.SGD(0.1), output_dtype=torch.bfloat16)
    frozen = bag().requires_grad_(False).eval()
    pooled = bag()
    twin = mt.EmbeddingBag.from_collection(pooled.tables, include_last_offset=True)
    fixed = mt.EmbeddingBag.from_collection(
        mpe.EmbeddingBagCollection([mpe.TableConfig("t", 9, 4, pooling="mean", trainable=False)])
    )
    model: Any = nn.ModuleDict(
        {"a": word, "b": word, "frozen": frozen, "pooled": pooled, "twin": twin, "fixed": fixed}
    )
    mt.restore(model)
    assert model.a is model.b
    assert model.a.weight.dtype == torch.bfloat16
    assert not model.frozen.training
    assert not model.frozen.weight.requires_grad
    assert not model.fixed.weight.requires_grad
    assert (model.fixed.mode, model.pooled.mode) == ("mean", "sum")
    assert model.pooled is not model.twin
    assert model.pooled.weight is model.twin.weight
    assert (model.pooled.include_last_offset, model.twin.include_last_offset) == (False, True)
    assert model.pooled.training
    assert model.pooled.weight.requires_grad


def test_a_frozen_module_beside_one_that_trains_leaves_their_weight_trained() -> None:
    trained = bag()
    frozen = mt.EmbeddingBag.from_collection(trained.tables).requires_grad_(False)
    for order in ([trained, frozen], [frozen, trained]):
        model: Any = mt.restore(nn.ModuleList(copy.copy(one) for one in order))
        assert model[0].weight.requires_grad


def test_padding_is_kept_where_a_module_has_it() -> None:
    word: Any = mt.Embedding(9, 4, optimizer=mpe.SGD(0.1))
    word.__dict__["padding_idx"] = 2
    model: Any = mt.restore(nn.Sequential(word))
    assert model[0].padding_idx == 2


def test_an_embedding_itself_is_returned() -> None:
    module = bag()
    made = mt.restore(module)
    assert type(made) is nn.EmbeddingBag
    with torch.no_grad():
        torch.testing.assert_close(made(*batch()), module.eval()(*batch()))


def hooked() -> nn.Module:
    module = bag()
    module.register_forward_hook(lambda *_: None)
    return module


class Subclass(mt.EmbeddingBag):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (collection, "1: PyTorch has no module for EmbeddingBagCollection: read its rows with"),
        (lambda: Subclass(9, 4, optimizer=mpe.SGD(0.1)), "1: PyTorch has no module for Subclass"),
        (hooked, "1: its hooks would be lost: remove them"),
    ],
)
def test_what_cannot_be_restored_changes_nothing(make: Any, message: str) -> None:
    model = nn.Sequential(bag(), make())
    train(model[0])
    first, before = model[0], state(model[0])
    with pytest.raises(ValueError, match=message):
        mt.restore(model)
    assert model[0] is first
    assert state(first) == before


def test_models_without_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="no module of mpembed.torch: there is nothing to restore"):
        mt.restore(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        mt.restore(3)  # type: ignore[arg-type]
