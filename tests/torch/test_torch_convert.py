"""mpembed.torch.convert: what it keeps, and what it refuses before anything changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from convertible import Model
from programs import finish, start
from torch import nn

import mpembed as mpe
from mpembed import torch as mt
from mpembed.rounding import RoundingWarning
from mpembed.torch._convert import default_optimizer

pytestmark = pytest.mark.torch


INDICES = torch.arange(12).view(3, 4) * 20


def swap(model: Any, precision: Any = "fp32", **options: Any) -> Any:
    return mt.convert(model, precision, optimizer=mpe.SGD(lr=1e-3), verbose=False, **options)


def test_the_model_gives_and_learns_what_it_did() -> None:
    model = Model()
    ours = swap(copy.deepcopy(model))
    one: Any
    assert isinstance(ours.words, mt.Embedding)
    assert [bag.mode for bag in ours.bags] == ["sum", "mean"]
    assert ours.again is ours.bags[0]
    assert {name for name, p in ours.named_parameters() if p is not ours.again.anchor} == {
        *("dense.weight", "dense.bias", "bags.1.anchor", "words.anchor")
    }
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_are_of_the_type_of_the_weight(dtype: torch.dtype) -> None:
    model = nn.Embedding(9, 4, dtype=dtype)
    weight = model.weight.detach().clone()
    ours = swap(model)
    out = ours(torch.arange(9))
    assert out.dtype is dtype
    assert torch.equal(out.detach(), weight.to(torch.float32).to(dtype))
    out.sum().backward()
    assert torch.allclose(ours(torch.arange(9)), weight - 1e-3, atol=4e-2)
    assert swap(nn.Embedding(9, 4), output_dtype=torch.float16)(torch.tensor([1])).dtype is (
        torch.float16
    )


@pytest.mark.parametrize("option", ["init", "name", "learning_rate", "sparse", "padding_idx"])
def test_options_that_it_does_not_have_are_refused(option: str) -> None:
    with pytest.raises(TypeError, match=f"convert has no option '{option}'"):
        swap(Model(), **{option: "zeros"})


def test_an_optimizer_of_pytorchs_is_refused() -> None:
    model: Any = Model()
    theirs: Any = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match=r"mpembed.Adam\(lr=0.001\), got torch.optim.adam.Adam"):
        mt.convert(model, optimizer=theirs)
    assert isinstance(model.words, nn.Embedding)


def test_it_warns_once_of_rounding_noise_when_training_ends() -> None:
    model: Any = nn.Sequential(nn.EmbeddingBag(9000, 8, mode="sum"))
    silent = copy.deepcopy(model)
    mt.convert(model, "int2", optimizer=mpe.SGD(0.001))
    mt.convert(silent, "int2", optimizer=mpe.SGD(0.001), verbose=False)
    model.eval()  # nothing is trained yet
    for one in (model, silent):
        one.train()
        for _ in range(3):
            one(torch.arange(9000)[:, None]).square().sum().backward()
    with pytest.warns(
        RoundingWarning, match=r"0: rounding noise is \d.* in int2: \w+ or a larger cache"
    ):
        model.eval()
    for one in (model, silent):
        one.train()
        one.eval()
    assert model[0].tables.rounding_report()["0"].rows >= 16  # the warning was no report


def test_a_number_is_the_share_of_the_rows_that_an_lfu_cache_holds() -> None:
    model = swap(Model(), cache=0.05)
    explicit = swap(Model(), cache=mpe.CacheConfig(load_factor=0.05, policy="lfu"))
    for ours, expected in ((model.words, explicit.words), (model.again, explicit.again)):
        assert ours.tables.memory_report() == expected.tables.memory_report()
    (cache,) = model.again.tables.memory_report()["caches"].values()
    assert cache["sketch"] > 0
    assert cache["cache_rows"] == -(-2000 // 20 // 32) * 32 * 16 * 4


def test_tables_in_fp32_among_others_have_no_cache() -> None:
    model = swap(Model(), {"words": "fp32", "*": "int8"}, cache=0.05)
    assert model.words.tables.memory_report()["caches"] == {}
    assert model.again.tables.memory_report()["caches"] != {}


@pytest.mark.parametrize("cache", [0, -0.1, 1.5, 5, float("nan")])
def test_a_share_that_is_none_is_refused(cache: float) -> None:
    with pytest.raises(ValueError, match="cache must be"):
        swap(Model(), cache=cache)
    with pytest.raises(TypeError, match="cache must be a number, got bool"):
        swap(Model(), cache=True)


def test_options_without_a_meaning_are_accepted() -> None:
    model = nn.ModuleList(
        [
            nn.Embedding(9, 4, padding_idx=-1, sparse=True),
            nn.EmbeddingBag(9, 4, padding_idx=2, sparse=True, mode="sum"),
            nn.Embedding(9, 4, norm_type=1.0),
        ]
    )
    ours = swap(model)
    assert [one.padding_idx for one in ours] == [8, 2, None]
    assert all(isinstance(one, mt.Embedding | mt.EmbeddingBag) for one in ours)


class Scaled(nn.Embedding):
    """A subclass as there are many: it has its own way of starting, and remembers it."""

    family = "scaled"
    shown = 1

    def __init__(self, rows: int, columns: int, scale: float = 0.5) -> None:
        self.scale = scale
        super().__init__(rows, columns, padding_idx=0)
        self.shown = 2

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.scale)
        self._clear()

    def _clear(self) -> None:
        with torch.no_grad():
            self.weight[0] = 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scale}"


class ScaledBag(nn.EmbeddingBag):
    """Nothing of its own."""


def test_subclasses_that_only_start_in_their_own_way_are_replaced() -> None:
    model: Any = nn.ModuleList([Scaled(9, 4), ScaledBag(9, 4, mode="sum")])
    weight = model[0].weight.detach().clone()
    ours: Any = swap(model)
    assert (ours[0].family, ours[0].scale, ours[0].shown) == ("scaled", 0.5, 2)
    assert ours[0].padding_idx == 0
    assert torch.equal(ours[0](torch.arange(9)), weight)
    assert [type(one) for one in ours] == [mt.Embedding, mt.EmbeddingBag]
    assert "family" not in vars(ours[1])


def test_attributes_that_a_caller_has_set_are_kept() -> None:
    model: Any = Model()
    model.words.trained_on = {"clicks": 3}
    model.words._is_initialized = True
    assert swap(model).words.trained_on == {"clicks": 3}
    assert model.words._is_initialized is True


def test_what_is_left_out_is_the_module_of_before() -> None:
    model: Any = Model()
    words, (first, second) = model.words, model.bags
    ours = swap(model, exclude="words", precision={"*": "int4"})
    assert ours.words is words
    assert ours.bags[0] is not first
    assert ours.bags[1] is not second
    assert ours.again is ours.bags[0]
    assert "words.weight" in dict(ours.named_parameters())
    ours(INDICES).sum().backward()
    assert words.weight.grad is not None
    assert ours.bags[1].tables.step > 0


def test_what_was_converted_before_is_left_alone() -> None:
    model: Any = swap(Model(), exclude="bags.*")
    words = model.words
    ours = swap(model, "int4")
    assert ours.words is words
    assert [bag.tables.tables[0].precision for bag in ours.bags] == ["int4", "int4"]
    with pytest.raises(ValueError, match="all embeddings of the model are converted already"):
        swap(model)


def test_lists_and_dicts_of_the_model_get_the_replacements() -> None:
    model: Any = Model()
    model.by_name = {"words": model.words, "more": [None, model.bags[1]]}
    object.__setattr__(model, "hidden", model.bags[0])
    ours = swap(model)
    assert ours.by_name["words"] is ours.words
    assert ours.by_name["more"][1] is ours.bags[1]
    assert ours.hidden is ours.bags[0]
    assert isinstance(ours.hidden, mt.EmbeddingBag)


DRAWS = """
    import random
    import numpy as np
    import torch
    import mpembed.torch

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    model = torch.nn.ModuleList([torch.nn.Embedding(9, 4), torch.nn.EmbeddingBag(9, 4)])
    before = states()
    mpembed.torch.convert(model, verbose=False)  # the first one of the process
    assert states() == before
    print("trained")
"""


def test_it_draws_no_random_numbers_that_others_draw(tmp_path: Path) -> None:
    finish(start(tmp_path, DRAWS))
