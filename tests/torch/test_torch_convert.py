"""mpembed.torch.convert: what it keeps, and what it refuses before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch._convert import default_optimizer

pytestmark = pytest.mark.torch


class Model(nn.Module):
    """Two embeddings and bags, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(300, 16)
        self.bags = nn.ModuleList([nn.EmbeddingBag(2000, 16, mode=m) for m in ("sum", "mean")])
        self.again = self.bags[0]
        self.dense = nn.Linear(64, 1)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        parts = [self.words(indices).sum(1), *(bag(indices) for bag in self.bags)]
        result: torch.Tensor = self.dense(torch.cat([*parts, self.again(indices + 7)], 1))
        return result


INDICES = torch.arange(12).view(3, 4) * 20


def swap(model: Any, precision: str = "fp32", **options: Any) -> Any:
    return mt.convert(model, precision, optimizer=mpe.SGD(lr=1e-3), verbose=False, **options)


def test_the_model_gives_and_learns_what_it_did() -> None:
    model = Model()
    ours = swap(copy.deepcopy(model))
    one: Any
    assert isinstance(ours.words, mt.Embedding)
    assert [bag.mode for bag in ours.bags] == ["sum", "mean"]
    assert ours.again is ours.bags[0]
    assert {name for name, _ in ours.named_parameters()} == {"dense.weight", "dense.bias"}
    optimizer, dense = (torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, ours))
    first = float("inf")
    for _ in range(4):
        losses = []
        for one, steps in ((model, optimizer), (ours, dense)):
            steps.zero_grad()
            loss = one(INDICES).square().sum()
            loss.backward()
            steps.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[1] < first
        first = losses[1]


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "bf16"])
def test_weights_are_kept_as_the_precision_stores_them(precision: str) -> None:
    model: Any = Model()
    weight = model.bags[1].weight.detach().numpy().copy()
    ours = swap(model, precision, rounding="nearest")
    packed = mpe.ops.quantize(weight, precision, rounding="nearest")
    rows = ours.bags[1].tables.state_arrays()["table.bags.1.rows"]
    assert np.array_equal(rows, packed)


def test_it_prints_the_memory_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = mt.convert(Model(), "int4", cache=mpe.CacheConfig(load_factor=0.05))
    text = capsys.readouterr().out
    total = sum(m.tables.memory_report()["total"] for m in (model.words, *model.bags))
    assert f"3 table(s) to int4: 275.2 kB of weights -> {total / 1e3:.1f} kB" in text
    assert f"{275_200 / total:.2f}x" in text
    assert "bags.1: 2,000 x 16, 128.0 kB ->" in text
    assert repr(model.words.optimizer).startswith("RowwiseAdagrad(lr=0.02")
    many = nn.Sequential(*(nn.Embedding(5, 2) for _ in range(10)))
    mt.convert(many)
    assert "... 2 more" in capsys.readouterr().out


def test_the_default_optimizer_is_the_one_in_the_documentation() -> None:
    default = default_optimizer()
    assert f"``{type(default).__name__}(lr={default.lr})``" in str(mt.convert.__doc__)


def test_a_model_that_is_an_embedding_is_returned_new() -> None:
    ours = swap(nn.EmbeddingBag(9, 4, include_last_offset=True))
    assert isinstance(ours, mt.EmbeddingBag)
    assert ours(torch.tensor([1, 2]), torch.tensor([0, 2])).shape == (1, 4)


def test_what_is_frozen_or_in_evaluation_stays_so() -> None:
    model = Model()
    model.words.weight.requires_grad_(False)
    model.bags[1].eval()
    ours = swap(model)
    assert not ours.words(INDICES).requires_grad
    assert not ours.bags[1].training
    assert ours.bags[0](INDICES).requires_grad


def test_weights_in_half_precision_give_half_precision() -> None:
    ours = swap(nn.Embedding(9, 4, dtype=torch.bfloat16))
    assert ours(torch.tensor([1])).dtype is torch.bfloat16
    assert swap(nn.Embedding(9, 4), output_dtype=torch.float16)(torch.tensor([1])).dtype is (
        torch.float16
    )


class Own(nn.Embedding):
    """A subclass."""


def tied(model: Any) -> None:
    model.head = nn.Linear(16, 300)
    model.head.weight = model.words.weight


def tied_by_memory(model: Any) -> None:
    model.head = nn.Linear(16, 300)
    model.head.weight = nn.Parameter(model.words.weight.data)


def hooked(model: Any, kind: str) -> None:
    if kind.endswith("state"):
        model.words.register_state_dict_post_hook(lambda *_: None)
    elif kind.endswith("load"):
        model.words.register_load_state_dict_pre_hook(lambda *_: None)
    else:
        getattr(model.words.weight, kind)(lambda *_: None)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "words: padding_idx=0 is not supported: leave": lambda m: setattr(
        m, "words", nn.Embedding(9, 4, padding_idx=0)
    ),
    "words: max_norm=1.0": lambda m: setattr(m, "words", nn.Embedding(9, 4, max_norm=1.0)),
    "scale_grad_by_freq": lambda m: setattr(m.words, "scale_grad_by_freq", True),
    "words: sparse=True": lambda m: setattr(m, "words", nn.Embedding(9, 4, sparse=True)),
    "bags.0: mode must be 'sum' or 'mean', got 'max'": lambda m: setattr(m.bags[0], "mode", "max"),
    "words: Own is a subclass": lambda m: setattr(m, "words", Own(9, 4)),
    "bags.1: its weight must be of torch.float32, .* got torch.float64": lambda m: m.bags[
        1
    ].double(),
    "bags.0: its hooks": lambda m: m.again.register_forward_hook(lambda *_: None),
    "words: its weight is also used by head": tied,
    "words: its weight is also used by (head)": tied_by_memory,
    "words: its hooks would be lost": lambda m: hooked(m, "register_hook"),
    "words: its hooks would be (lost)": lambda m: hooked(m, "register_post_accumulate_grad_hook"),
    "words: its hooks would (be lost)": lambda m: hooked(m, "state"),
    "words: its hooks (would be lost)": lambda m: hooked(m, "load"),
    "words: its weight cannot be stored": lambda m: nn.init.constant_(m.words.weight, torch.nan),
    "bags.1: its weight cannot be stored": lambda m: nn.init.constant_(m.bags[1].weight, 1e6),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name_before_anything_changes(message: str) -> None:
    model = Model()
    REFUSED[message](model)
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        swap(model, "fp16")
    assert list(model.modules()) == before


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="no nn.EmbeddingBag and no nn.Embedding"):
        swap(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got NoneType"):
        swap(None)


@pytest.mark.parametrize("option", ["init", "name", "learning_rate"])
def test_options_that_it_does_not_have_are_refused(option: str) -> None:
    with pytest.raises(TypeError, match=f"convert has no option '{option}'"):
        swap(Model(), **{option: "zeros"})
    with pytest.raises(ValueError, match="sparse=True"):
        swap(Model(), sparse=True)
