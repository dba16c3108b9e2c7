"""mpembed.torch.convert: what it refuses, all at once, before anything changes."""

from __future__ import annotations

import types
from abc import ABC
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest

pytest.importorskip("torch")

import torch
from convertible import Model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch

T = TypeVar("T")


def swap(model: Any, precision: str = "fp16", **options: Any) -> Any:
    return mt.convert(model, precision, optimizer=mpe.SGD(lr=1e-3), verbose=False, **options)


def reasons_of(model: nn.Module) -> str:
    with pytest.raises(ValueError, match="cannot be converted") as caught:
        swap(model)
    return str(caught.value)


def refused(model: nn.Module, **options: Any) -> str:
    """Return why a model is refused, after a look at whether it is as it was."""
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = [dict(vars(module)) for module in modules]
    with pytest.raises(ValueError, match="cannot be converted") as caught:
        swap(model, **options)
    assert list(model.modules()) == modules
    assert [dict(vars(module)) for module in modules] == attributes
    torch.testing.assert_close(model.state_dict(), state, equal_nan=True)
    return str(caught.value)


class WithForward(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class BagWithForward(nn.EmbeddingBag):
    def forward(self, *arguments: Any) -> torch.Tensor:
        return super().forward(*arguments)


class WithCall(nn.Embedding):
    def __call__(self, input: torch.Tensor) -> Any:
        return super().__call__(input + 1)


class WithMethods(nn.Embedding):
    def normalize(self) -> None:
        raise NotImplementedError

    @property
    def norm(self) -> float:
        return 1.0

    def train(self, mode: bool = True) -> Any:
        return super().train(mode)


class Mixin:
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


class WithMixin(Mixin, nn.Embedding):
    """Its forward comes from another class."""


class WithBuffer(nn.Embedding):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns)
        self.register_buffer("seen", torch.zeros(rows))


class WithDevice(nn.Embedding):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns)
        self.device = "cpu"


def put(module: nn.Module) -> Callable[[Any], Any]:
    return lambda model: setattr(model, "words", module)


def tied(model: Any, module: nn.Module | None = None, *, by_memory: bool = False) -> None:
    model.head = module or nn.Linear(16, 300)
    weight = model.words.weight
    model.head.weight = nn.Parameter(weight.data) if by_memory else weight


def overlapping(model: Any) -> None:
    whole = torch.zeros(600, 16)
    model.words.weight = nn.Parameter(whole[:300])
    model.part = nn.Parameter(whole[299:310])


def hooked(kind: str) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        if kind.endswith("state"):
            model.words.register_state_dict_post_hook(lambda *_: None)
        elif kind.endswith("load"):
            model.words.register_load_state_dict_pre_hook(lambda *_: None)
        else:
            getattr(model.words.weight, kind)(lambda *_: None)

    return change


def bound(model: Any) -> None:
    model.words.double_it = types.MethodType(lambda self: 2 * self.weight, model.words)


def instance_forward(model: Any) -> None:
    model.words.forward = lambda input: input


HOOKS = "words: its hooks would be lost: remove them"
REFUSED: list[tuple[str, Callable[[Any], Any]]] = [
    ("words: max_norm=1.0 is not supported: leave", put(nn.Embedding(9, 4, max_norm=1.0))),
    ("words: scale_grad_by_freq=True", lambda m: setattr(m.words, "scale_grad_by_freq", True)),
    ("bags.0: mode must be 'sum' or 'mean', got 'max'", lambda m: setattr(m.again, "mode", "max")),
    ("words: WithForward has a forward of its own", put(WithForward(9, 4))),
    ("words: BagWithForward has a forward of its own", put(BagWithForward(9, 4))),
    ("words: Mixin has a forward of its own", put(WithMixin(9, 4))),
    ("words: the replacement would not have WithCall.__call__: rep", put(WithCall(9, 4))),
    ("have WithMethods.normalize, WithMethods.norm, WithMethods.train:", put(WithMethods(9, 4))),
    ("words: it has seen beside its weight, which would be lost", put(WithBuffer(9, 4))),
    ("its attribute device has the name of one of mpembed's: rename it", put(WithDevice(9, 4))),
    ("words: its attribute double_it is bound to it", bound),
    ("words: its forward was replaced, which would be lost", instance_forward),
    ("words: it is parametrized", lambda m: parametrizations.weight_norm(m.words)),
    ("weight_mask, weight_orig beside its weight", lambda m: prune.random_unstructured(
        m.words, "weight", 0.5
    )),
    ("words: its weight is not a parameter", lambda m: setattr(m.words, "weight", None)),
    ("words: its weight is on the meta device", lambda m: m.words.to("meta")),
    ("words: its weight must have rows and columns, got shape (9, 0)", put(nn.Embedding(9, 0))),
    ("bags.1: its weight must be of torch.float32, ", lambda m: setattr(
        m.bags[1], "weight", nn.Parameter(torch.zeros(9, 4, dtype=torch.complex64))
    )),
    ("bags.0: its hooks", lambda m: m.again.register_forward_hook(lambda *_: None)),
    (HOOKS, hooked("register_hook")),
    (HOOKS, hooked("register_post_accumulate_grad_hook")),
    (HOOKS, hooked("state")),
    (HOOKS, hooked("load")),
    ("words: its weight is also used by head (Linear): exclude it, or take head out and call "
     "torch.nn.functional.linear(x, words.weight) in its place", tied),
    ("words: its weight is also used by head (Linear)", lambda m: tied(m, by_memory=True)),
    ("words: its weight is also used by head (Embedding): use one module in both places, or "
     "exclude both", lambda m: tied(m, nn.Embedding(300, 16))),
    ("words: its weight is also used by the model (Model): exclude it, or give", lambda m: setattr(
        m, "own", m.words.weight
    )),
    ("words: its weight is also used by the model", overlapping),
    ("words: its weight cannot be stored", lambda m: nn.init.constant_(m.words.weight, torch.nan)),
    ("bags.1: its weight cannot be stored", lambda m: nn.init.constant_(m.bags[1].weight, 1e6)),
    ("words: its weight cannot be stored", lambda m: nn.init.constant_(
        m.words.double().weight, 1e300
    )),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_name_before_anything_changes(
    message: str, change: Callable[[Any], Any]
) -> None:
    model = Model()
    change(model)
    text = refused(model) if not message.endswith("meta device") else reasons_of(model)
    assert message in text


@pytest.mark.parametrize(("message", "change"), REFUSED)
def test_the_argument_that_it_names_is_the_way_out(
    message: str, change: Callable[[Any], Any]
) -> None:
    model: Any = Model()
    change(model)
    text = reasons_of(model)
    _, argument = text.split("To convert the others: exclude=")
    left: list[str] = []
    exec(f"left += {argument}", {"left": left})
    stays = [model.get_submodule(name) for name in left]
    ours = swap(model, exclude=left)
    assert [ours.get_submodule(name) for name in left] == stays
    assert sum(isinstance(one, mt.Embedding | mt.EmbeddingBag) for one in ours.modules()) >= 1


def test_one_error_names_every_module_with_all_its_reasons() -> None:
    model: Any = Model()
    model.words = WithBuffer(9, 4)
    model.words.max_norm = 2.0
    model.bags[1].mode = "max"
    lines = refused(model).splitlines()
    assert lines == [
        "2 of 3 embeddings cannot be converted:",
        "  words: it has seen beside its weight, which would be lost: remove that, or replace it "
        "by hand; max_norm=2.0 is not supported: leave it None; the optimizer's weight_decay keeps "
        "rows small too",
        "  bags.1: mode must be 'sum' or 'mean', got 'max'",
        "To convert the others: exclude=['words', 'bags.1']",
    ]
    assert len(refused(model, exclude="words").splitlines()) == 3


def test_weights_that_cannot_be_stored_are_all_named() -> None:
    model: Any = Model()
    for module in (model.words, model.bags[0]):
        nn.init.constant_(module.weight, torch.inf)
    text = refused(model)
    assert "2 of 3 embeddings" in text
    assert text.endswith("exclude=['words', 'bags.0']")


def test_where_none_can_be_converted_it_does_not_say_how() -> None:
    text = refused(nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)))
    assert text.startswith("1 of 1 embeddings cannot be converted:")
    assert "exclude=" not in text


def test_what_is_left_out_is_not_looked_at() -> None:
    model: Any = Model()
    model.words = WithForward(9, 4)
    assert isinstance(swap(model, exclude="words").bags[0], mt.EmbeddingBag)
    assert isinstance(model.words, WithForward)


def test_a_weight_that_something_left_out_uses_is_refused() -> None:
    model: Any = Model()
    tied(model, nn.Embedding(300, 16))
    assert "words: its weight is also used by head" in refused(model, exclude="head")
    assert isinstance(swap(model, exclude=["words", "head"]).head, nn.Embedding)


def test_parts_of_one_vector_are_weights_of_their_own() -> None:
    model: Any = Model()
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())
    rows = model.words.weight.detach().clone()
    assert torch.equal(swap(model, "fp32").words(torch.arange(300)), rows)


def test_a_parametrization_can_be_taken_off_first() -> None:
    model: Any = Model()
    parametrize.register_parametrization(model.words, "weight", nn.Softsign())
    assert "words: it is parametrized" in reasons_of(model)
    parametrize.remove_parametrizations(model.words, "weight")
    assert isinstance(swap(model).words, mt.Embedding)


class Typed(nn.Embedding, ABC, Generic[T]):
    """Classes of Python's own beside it say nothing about its calls."""


def test_a_generic_abstract_subclass_is_replaced() -> None:
    assert type(swap(nn.Sequential(Typed[int](9, 4)))[0]) is mt.Embedding


def test_a_compiled_module_is_replaced() -> None:
    model: Any = Model()
    model.words.compile(backend="eager")
    assert "_compiled_call_impl" not in vars(swap(model).words)
