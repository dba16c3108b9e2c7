"""Optimizers as users see them: settings, one step against the textbook, state."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import kinds
import numpy as np
import pytest
from helpers import Array
from oracles import DECAYS, SETTINGS, Oracle
from reference.formats import bf16_codes

import mpembed as mpe
from mpembed import optim

ROWS, DIM = 5, 7
RNG = np.random.default_rng(3)
START = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
GRADS = RNG.standard_normal((4, DIM)).astype(np.float32)
HIT = np.array([3, 1, 3, 0])  # row 3 twice, rows 2 and 4 never


def collection(optimizer: Any, **options: Any) -> mpe.EmbeddingBagCollection:
    table = mpe.TableConfig("t", ROWS, DIM, pooling="none", init="zeros")
    emb = mpe.EmbeddingBagCollection([table], optimizer=optimizer, **options)
    emb.set_rows("t", np.arange(ROWS), START)
    return emb


def step(emb: mpe.EmbeddingBagCollection, grads: Array = GRADS) -> Array:
    """One fused step over HIT; returns all rows after it."""
    emb.forward(HIT, np.array([0, len(HIT)]))
    emb.backward({"t": grads})
    return np.asarray(emb.rows("t", np.arange(ROWS)))


@pytest.mark.pairwise
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("name", kinds.NAMES)
def test_one_step_is_the_textbook_step(name: str, mode: str, cached: bool) -> None:
    optimizer = kinds.named(name, 0.3, mode)
    cache = mpe.CacheConfig(num_sets=1, ways=8) if cached else None
    after = step(collection(optimizer, cache=cache))
    oracle = Oracle(optimizer.kind, START, 0.3, mode, SETTINGS[optimizer.kind])
    gradients = np.zeros((ROWS, DIM))
    np.add.at(gradients, HIT, GRADS.astype(np.float64))
    oracle.step(gradients, np.unique(HIT))
    # A handful of FP32 operations on numbers below 10. A first state in BF16 is one of 0 or of 0.1.
    slack = 2.0**-9 if "_" in name and "initial_accumulator_value" in optimizer.settings() else 0.0
    np.testing.assert_allclose(after, oracle.w, rtol=0, atol=10 * 2**-22 + slack)
    np.testing.assert_array_equal(after[[2, 4]], START[[2, 4]])


@pytest.mark.parametrize("name", [name for name in kinds.NAMES if name != "ftrl"])
def test_a_rate_of_zero_moves_nothing_but_state(name: str) -> None:
    if name.startswith("ftrl"):  # it divides by its rate
        with pytest.raises(ValueError, match="lr"):
            kinds.named(name, 0.0)
        return
    optimizer = kinds.named(name, 0.0)
    emb = collection(optimizer)
    before = states(emb, optimizer)
    np.testing.assert_array_equal(step(emb), START)
    for old, new in zip(before, states(emb, optimizer), strict=True):
        touched = (old != new).reshape(ROWS, -1).any(axis=1)
        assert np.flatnonzero(touched).tolist() == [0, 1, 3]


def states(emb: mpe.EmbeddingBagCollection, optimizer: Any) -> list[Array]:
    arrays = emb.state_arrays()
    return [np.array(arrays[f"table.t.{state.name}"]) for state in optimizer.states]


@pytest.mark.parametrize("name", kinds.NAMES)
def test_a_zero_gradient_leaves_all_finite_and_in_place(name: str) -> None:
    if name.startswith("ftrl"):
        return  # whose weights follow from z at once
    emb = collection(kinds.named(name))
    np.testing.assert_array_equal(step(emb, np.zeros_like(GRADS)), START)


@pytest.mark.parametrize("name", kinds.NAMES)
def test_states_are_what_the_optimizer_says(name: str) -> None:
    optimizer = kinds.named(name)
    emb = collection(optimizer)
    found = [key for key in emb.state_arrays() if key.startswith("table.") and ".rows" not in key]
    assert found == [f"table.t.{state.name}" for state in optimizer.states]
    for state, array in zip(optimizer.states, states(emb, optimizer), strict=True):
        element = state.shape == mpe.registry.STATE_ELEMENT
        assert array.shape == ((ROWS, DIM) if element else (ROWS,))
        assert array.dtype == (np.uint16 if state.precision == "bf16" else np.float32)
        start = np.full((1,), state.initial, np.float32)
        assert (array == (bf16_codes(start, None) if state.precision == "bf16" else start)).all()


def test_an_initial_value_is_that_of_its_state() -> None:
    for optimizer, name in (
        (mpe.Adagrad(0.1, initial_accumulator_value=0.75), "sum"),
        (mpe.RowwiseAdagrad(0.1, initial_accumulator_value=0.75), "sum"),
        (mpe.Ftrl(0.1, initial_accumulator_value=0.75), "n"),
    ):
        initial = {state.name: state.initial for state in optimizer.states}
        assert initial.pop(name) == 0.75
        assert set(initial.values()) <= {0.0}


@pytest.mark.parametrize("name", kinds.NAMES)
def test_settings_make_the_same_optimizer_again(name: str) -> None:
    made = kinds.named(name, 0.125, "l2")
    again = optim.OPTIMIZERS[made.kind](**made.settings())
    assert repr(again) == repr(made)
    assert (again.kind, again.parameters()) == (made.kind, made.parameters())
    assert again.states == made.states
    assert repr(made).startswith(f"{type(made).__name__}(lr=0.125, ")
    other = made.with_lr(0.5)
    assert (other.lr, made.lr) == (0.5, 0.125)
    assert other.settings() | {"lr": 0.125} == made.settings()


def test_defaults_are_those_of_pytorch_where_it_has_the_optimizer() -> None:
    assert mpe.SGD().settings() | {"lr": 1e-3, "momentum": 0.0} == mpe.SGD().settings()
    adagrad = {"lr": 1e-2, "lr_decay": 0.0, "eps": 1e-10, "initial_accumulator_value": 0.0}
    assert mpe.Adagrad().settings() | adagrad == mpe.Adagrad().settings()
    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    assert mpe.Adam().settings() | adam == mpe.Adam().settings()


def test_only_the_rate_can_be_set() -> None:
    optimizer = mpe.Adagrad(0.1)
    optimizer.lr = np.float32(0.5)  # type: ignore[assignment]
    assert optimizer.lr == 0.5
    for name in ("eps", "weight_decay", "weight_decay_mode", "states", "kind"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, 1)
    for one in map(kinds.named, kinds.NAMES):
        with pytest.raises(AttributeError, match="learning_rate"):
            one.learning_rate = 1
        assert repr(pickle.loads(pickle.dumps(one))) == repr(one)


@pytest.mark.parametrize("make", [*dict.fromkeys(kinds.CLASSES.values())])
def test_every_keyword_is_spelled_out(make: Any) -> None:
    parameters = inspect.signature(make).parameters.values()
    assert {p.kind for p in parameters} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert {p.name for p in parameters} == set(make(0.1).settings())
    text = inspect.getdoc(make) or ""  # Python 3.13 strips the indentation itself
    for parameter in parameters:
        assert re.search(rf"^(\w+, )*{parameter.name}(, \w+)*( : |$)", text, re.MULTILINE)
    with pytest.raises(TypeError, match=rf"^{make.__name__}\.__init__\(\) got an unexpected.*wd"):
        make(0.1, wd=0.1)


BAD_RATES: list[tuple[Any, type[Exception]]] = [
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (-1e-9, ValueError),
    (1e39, ValueError),  # infinite in FP32
    (10**400, ValueError),
    ("0.1", TypeError),
    (None, TypeError),
    (True, TypeError),
    (0.1j, TypeError),
    ([0.1], TypeError),
]


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize(("rate", "error"), BAD_RATES)
def test_bad_rates_are_refused_and_the_old_one_stays(
    kind: str, rate: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="^lr "):
        kinds.make(kind, rate)
    optimizer = kinds.make(kind, 0.25)
    with pytest.raises(error, match="^lr "):
        optimizer.lr = rate
    assert optimizer.lr == 0.25


ACCUMULATING = (mpe.Adagrad, mpe.RowwiseAdagrad)
MOMENTS = (mpe.Adam, mpe.RowwiseAdam, mpe.Lamb)
BAD_SETTINGS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (ACCUMULATING + MOMENTS, {"eps": 0.0}, "eps"),
    (ACCUMULATING + MOMENTS, {"eps": 1e-60}, "eps must be positive in float32"),
    (ACCUMULATING + MOMENTS, {"eps": float("nan")}, "eps"),
    (ACCUMULATING, {"initial_accumulator_value": -1.0}, "initial_accumulator_value"),
    (ACCUMULATING, {"initial_accumulator_value": float("inf")}, "initial_accumulator_value"),
    ((mpe.Ftrl,), {"initial_accumulator_value": -1.0}, "initial_accumulator_value"),
    ((mpe.Adagrad,), {"lr_decay": -1.0}, "lr_decay"),
    ((mpe.SGD,), {"momentum": -0.5}, "momentum"),
    ((mpe.SGD,), {"state_precision": "bf16"}, "keeps no state"),
    (MOMENTS, {"betas": (0.9, 1.0)}, r"betas\[1\] must satisfy 0 <= beta < 1, got 1.0"),
    (MOMENTS, {"betas": (-0.1, 0.9)}, r"betas\[0\] must satisfy 0 <= beta < 1, got -0.1"),
    (MOMENTS, {"betas": (0.9,)}, "betas"),
    (MOMENTS, {"betas": 0.9}, "betas must be two numbers, 0 <= beta < 1, got 0.9"),
    ((mpe.Ftrl,), {"lr_power": 0.1}, "lr_power"),
    ((mpe.Ftrl,), {"lr_power": -1.1}, "lr_power"),
    ((mpe.Ftrl,), {"l1": -1.0}, "l1"),
    ((mpe.Ftrl,), {"l2": float("inf")}, "l2"),
    ((mpe.Ftrl,), {"beta": -1.0}, "beta"),
    (
        tuple(kinds.CLASSES.values()),
        {"weight_decay": -0.1, "weight_decay_mode": "l2"},
        "weight_decay",
    ),
    (tuple(kinds.CLASSES.values()), {"weight_decay": 0.1}, "weight_decay_mode"),
    (
        tuple(kinds.CLASSES.values()),
        {"weight_decay_mode": "L2"},
        "weight_decay_mode must be one of 'none', 'l2'",
    ),
    (ACCUMULATING + MOMENTS + (mpe.Ftrl,), {"state_precision": "fp16"}, "state_precision"),
]


@pytest.mark.parametrize(("classes", "settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused(
    classes: tuple[Any, ...], settings: dict[str, Any], message: str
) -> None:
    for make in classes:
        with pytest.raises((ValueError, TypeError), match=message):
            make(0.1, **settings)
