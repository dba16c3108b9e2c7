"""mpembed.torch.convert: warnings of old weights and modules that something still holds."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from mpembed import torch as mt
from mpembed.torch import ConvertWarning

pytestmark = pytest.mark.torch


class Model(nn.Module):
    """Keeps weights for a penalty, as click models do."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"user": 1000, "item": 500}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, 8) for name, n in sizes.items()})
        self.dense = nn.Linear(16, 1)
        self.penalties: list[Any] = []
        self.device = "cpu"


def swap(model: nn.Module, **options: Any) -> list[str]:
    """Convert a model; return what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mt.convert(model, verbose=False, **options)
    assert all(one.category is ConvertWarning for one in caught)
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


def add_list(model: Any) -> None:
    model.penalties.append((list(model.embeddings.parameters()), 0.0, 1e-5))


def add_named(model: Any) -> None:
    named = filter(lambda one: "weight" in one[0], model.embeddings.named_parameters())
    model.penalties.append((list(named), 0.0, 1e-5))


def add_dict(model: Any) -> None:
    weights = [one.weight for one in model.embeddings.values()]
    model.penalties = OrderedDict(l2={"first": deque(weights[:1]), "rest": tuple(weights[1:])})


def add_keys(model: Any) -> None:
    model.penalties = dict.fromkeys(model.embeddings.parameters(), 1e-5)


def add_memory(model: Any) -> None:
    model.penalties = [one.weight.data.t() for one in model.embeddings.values()]


@pytest.mark.parametrize("add", [add_list, add_named, add_dict, add_keys, add_memory])
def test_containers_of_weights_are_named_with_their_bytes(add: Callable[[Any], None]) -> None:
    model = nn.Sequential(Model())
    add(model[0])
    add_dense: Any = model[0]
    add_dense.others = [add_dense.dense.weight]
    (text,) = swap(model)
    assert text.startswith(
        "0.penalties still holds the old weight of 0.embeddings.user, 0.embeddings.item: 48.0 kB "
        "stay in memory, and what is computed from them does not reach the tables."
    )


def test_an_attribute_and_a_buffer_are_named() -> None:
    model: Any = Model()
    model.__dict__["shortcut"] = model.embeddings["user"].weight
    model.register_buffer("start", model.embeddings["item"].weight.data)
    texts = swap(model)
    assert len(texts) == 2
    assert any(text.startswith("shortcut still holds the old weight of emb") for text in texts)
    assert any(
        text.startswith("start still holds the old weight of embeddings.item: 16.0 kB")
        for text in texts
    )


def test_other_weights_on_the_same_memory_may_be_held() -> None:
    model: Any = Model()
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    model.penalties = [model.dense.weight]
    assert swap(model, exclude="embeddings.user") == []
    model.penalties = [vector]
    (text,) = swap(model)
    assert text.startswith("penalties still holds the old weight of embeddings.user: 32.0 kB")


def test_what_is_left_out_may_be_held() -> None:
    model = Model()
    add_list(model)
    (text,) = swap(model, exclude="embeddings.item")
    assert "old weight of embeddings.user: 32.0 kB" in text
    assert not swap_all_but(model)


def swap_all_but(model: nn.Module) -> list[str]:
    fresh = Model()
    fresh.penalties = [list(model.parameters())]  # those of another model
    return swap(fresh)


def test_what_the_caller_holds_is_not_our_business() -> None:
    model = Model()
    weights, modules = list(model.embeddings.parameters()), list(model.embeddings.values())
    assert swap(model) == []
    assert len(weights) == len(modules) == 2


def test_an_optimizer_of_before_is_named_with_its_state() -> None:
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    other = torch.optim.SGD(model.dense.parameters())
    out = torch.cat([one(torch.arange(9)) for one in model.embeddings.values()], 1)
    model.dense(out).sum().backward()
    optimizer.step()
    (text,) = swap(model)
    kept = 3 * 1500 * 8 * 4 + 2 * 4  # weights, both moments, and the steps
    with_gradients = kept + 1500 * 8 * 4
    assert text == (
        "an optimizer (Adam) made before convert still holds the old weight of embeddings.user, "
        f"embeddings.item: {with_gradients / 1e3:.1f} kB stay in memory with its state, and it "
        "does not train the tables. Make it again after convert"
    )
    assert len(other.param_groups) == 1


def test_an_optimizer_that_is_garbage_is_not_named() -> None:
    model = Model()
    optimizer: Any = torch.optim.SGD(model.parameters())
    optimizer.itself = optimizer
    alive = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert alive() is not None
        assert swap(model) == []
    finally:
        gc.enable()


def test_modules_in_tuples_are_named() -> None:
    model: Any = Model()
    model.pair = [(model.embeddings["user"], model.dense)]
    (text,) = swap(model)
    assert text.startswith("pair still holds the old module embeddings.user, which is not trained")


def test_containers_that_hold_themselves_or_data_are_looked_through() -> None:
    model: Any = Model()
    model.loop = [1, "two", None]
    model.loop.append(model.loop)
    model.data = list(range(200_000))
    model.__dict__["proxy"] = weakref.proxy(nn.Linear(1, 1))  # dead at once
    assert swap(model) == []


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was() -> None:
    model = Model()
    add_list(model)
    before = list(model.modules())
    with pytest.raises(ConvertWarning, match="penalties still holds"):
        mt.convert(model, verbose=False)
    assert list(model.modules()) == before


def test_nothing_that_convert_makes_keeps_the_old_weights_alive() -> None:
    model = Model()
    held = [*model.embeddings.parameters(), *model.embeddings.values()]
    alive = weakref.WeakSet[Any](held)
    assert len(alive) == 4
    del held
    mt.convert(model, verbose=False)
    assert len(alive) == 0
