"""Optimizers of the user's own as objects: settings, names, what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import batch, collection
from own_optimizers import LION, LION_PARAMETERS, lion, struct
from reference.pair import assert_same

import mpembed as mpe
import mpembed.cuda
from mpembed import optim


@pytest.mark.parametrize(("name", "within"), [("Sgd", False), ("Lamb", True)])
def test_a_struct_named_like_one_of_the_package_is_its_own(name: str, within: bool) -> None:
    """Outside of all namespaces, or in the package's."""
    source = struct(name)
    if not within:
        source = source.replace("namespace mpembed {\n", "").replace("\n}\n", "\n")
        source = source.replace("OptimizerBase", "mpembed::OptimizerBase")
    emb = collection(optimizer=mpe.cuda.Optimizer(source, name, 0.5))
    before = emb.rows("a", np.arange(4))
    emb.forward(*batch())
    emb.backward(np.ones((3, 12), np.float32))
    np.testing.assert_array_equal(emb.rows("a", np.arange(4)), before)  # it trains nothing


@pytest.mark.parametrize(
    ("states", "more", "text"),
    [
        ('{"v", kStateElement, NAN}', "", "a state starts at a finite value"),
        ('{"v", kStateElement, -INFINITY}', "", "a state starts at a finite value"),
        ('{"v", kStateRow, 0.0f}', "", r"scale\(\) alone gets that state"),
    ],
)
def test_states_that_cannot_be_are_refused(states: str, more: str, text: str) -> None:
    with pytest.raises(mpe.cuda.CompileError, match=text):
        mpe.cuda.Optimizer(struct("Impossible", states, more=more), "Impossible", 0.5)


@pytest.mark.parametrize("place", [40, 8, -1, -300])
def test_coefficients_that_there_is_no_room_for_are_refused(place: int) -> None:
    source = struct("Many").replace("decay_coefficient(p, mode, c);", f"c[0] = c[{place}] = 1.0f;")
    words = rf"'Many' writes c\[{place}\], and there is room for 8"
    with pytest.raises(mpe.cuda.CompileError, match=words):
        mpe.cuda.Optimizer(source, "Many", 0.5)


def test_it_tells_its_settings() -> None:
    one = lion(0.5, "l2", state_precision={"exp_avg": "bf16"})
    assert isinstance(one, mpe.optim.Optimizer)
    assert (one.kind, one.lr, one.weight_decay_mode) == ("Lion", 0.5, "l2")
    assert one.states == (("exp_avg", mpe.registry.STATE_ELEMENT, "bf16", 0.0),)
    assert one.own_parameters == LION_PARAMETERS
    assert one.source == LION
    assert repr(one) == (
        "Optimizer(name='Lion', lr=0.5, parameters={'beta1': 0.9, 'beta2': 0.99}, "
        "weight_decay=0.01, weight_decay_mode='l2', state_precision={'exp_avg': 'bf16'})"
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_the_same_optimizer(again: Any) -> None:
    one = lion(0.5, "decoupled")
    other = again(one)
    assert other is not one
    assert repr(other) == repr(one)
    assert other.kernel_kind() == one.kernel_kind()
    assert one.with_lr(0.25).lr == 0.25
    assert repr(one.with_lr(0.5)) == repr(one)


def test_initial_values_are_exact() -> None:
    values = ["0.1f", "-3.0e38f", "1.4e-45f", "16777216.0f"]
    for i, value in enumerate(values):
        states = f'{{"a", kStateElement, {value}}}, {{"b", kStateElement, 0.0f}}'
        one = mpe.cuda.Optimizer(struct(f"Start{i}", states), f"Start{i}", 0.1)
        assert np.float32(one.states[0].initial) == np.float32(value[:-1])
        emb = collection(optimizer=one)
        found = emb.state_arrays()["table.a.a"]
        assert (found == np.float32(value[:-1])).all()


def test_without_states_there_is_no_precision_to_choose() -> None:
    with pytest.raises(ValueError, match="Optimizer with these settings keeps no state"):
        mpe.cuda.Optimizer(struct("Bare"), "Bare", 0.1, state_precision="bf16")


@pytest.mark.parametrize("name", ["", "1st", "a b", "a-b", "Größe", 3])
def test_a_name_that_no_struct_has(name: Any) -> None:
    with pytest.raises(ValueError, match="name must be that of the source's struct"):
        mpe.cuda.Optimizer(LION, name, 0.1, parameters=LION_PARAMETERS)


@pytest.mark.parametrize("name", [*mpe.registry.OPTIMIZERS, "frozen"])
def test_a_name_of_the_package(name: str) -> None:
    with pytest.raises(ValueError, match=f"name '{name}' is taken: give the struct another name"):
        mpe.cuda.Optimizer(struct(name), name, 0.1)


def test_a_name_stands_for_one_source() -> None:
    lion()
    with pytest.raises(ValueError, match="name 'Lion' is that of another source in this process"):
        mpe.cuda.Optimizer(LION + " ", "Lion", 0.1, parameters=LION_PARAMETERS)


def test_a_source_is_a_text() -> None:
    source: Any = Path("lion.h")
    with pytest.raises(TypeError, match="source must be a str of C\\+\\+, got PosixPath"):
        mpe.cuda.Optimizer(source, "Lion", 0.1)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "Lion needs a value for its parameter 'beta1'"),
        ({"beta1": 0.9}, "Lion needs a value for its parameter 'beta2'"),
        ({**LION_PARAMETERS, "eps": 1}, "Lion has no parameter 'eps'; it has 'beta1', 'beta2'"),
        ({**LION_PARAMETERS, "beta1": np.nan}, "beta1 must be finite, got nan"),
        ({**LION_PARAMETERS, "beta1": "x"}, "beta1 must be a number, got str"),
    ],
)
def test_parameters_are_checked(parameters: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        mpe.cuda.Optimizer(LION, "Lion", 0.1, parameters=parameters)


@pytest.mark.parametrize(
    ("states", "parameters", "words"),
    [
        ('{"rows", kStateElement, 0.0f}', "nullptr", "state 'rows' has a name that is taken"),
        ('{"a.b", kStateElement, 0.0f}', "nullptr", "state 'a.b' must be a name of ASCII letters"),
        (
            '{"a", kStateElement, 0}, {"a", kStateElement, 0}',
            "nullptr",
            "each state needs a name of",
        ),
        ("", '"lr", nullptr', "parameter 'lr' has a name that is taken"),
        ("", '"a", "a", nullptr', "each parameter needs a name of its own"),
        ('{"a", static_cast<StateShape>(3), 0}', "nullptr", "state 'a' has shape 3"),
    ],
)
def test_what_a_struct_declares_is_checked(states: str, parameters: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mpe.cuda.Optimizer(struct("Wrong", states, parameters), "Wrong", 0.1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (struct("Off", '{"a", 2, 0.0f}'), "Off:6:"),
        (struct("Off", more="int x = y;"), "Off:13:11: error"),
        (struct("Off").replace("kNumStates = 0", "kNumStates = 3"), "two states at most"),
        (
            struct("Off", '{"a", kStateRow, 0}, {"b", kStateRow, 0}'),
            "one state at most may be of a value a row",
        ),
        (
            struct("Off", '{"a", kStateElement, 0}').replace("kNumStates", "kNumState"),
            "kStates must have kNumStates entries",
        ),
        (struct("Off").replace("kNumStates = 0", "kNumStates = 1"), "kStates must have kNumStates"),
        (struct("Off", parameters='"a"'), "kParameters must end with nullptr"),
        (struct("Off", more="static constexpr bool kSquares = true;"), "kSquares and a state"),
        (struct("Other"), "Off"),
    ],
)
def test_a_wrong_source_gives_the_compilers_words(source: str, words: str) -> None:
    with pytest.raises(mpe.cuda.CompileError, match=words) as error:
        mpe.cuda.Optimizer(source, "Off", 0.1)
    assert str(error.value).startswith("the source of optimizer 'Off' does not compile with ")
    assert "Off" not in optim.OWN


def test_a_name_is_free_again_after_an_error() -> None:
    with pytest.raises(mpe.cuda.CompileError):
        mpe.cuda.Optimizer("struct", "SecondTry", 0.1)
    assert mpe.cuda.Optimizer(struct("SecondTry"), "SecondTry", 0.1).kind == "SecondTry"


def test_a_struct_may_be_outside_of_the_namespace() -> None:
    text = struct("Outside").replace("namespace mpembed {", "using namespace mpembed; namespace {")
    collection(optimizer=mpe.cuda.Optimizer(text, "Outside", 0.1))


def test_a_rate_that_changes_counts_at_the_next_update() -> None:
    emb = collection(optimizer=lion(0.5))
    indices, offsets = batch()
    before = emb.rows("a", np.arange(3))
    assert emb.optimizer is not None
    emb.optimizer.lr = 0.0
    emb.backward(np.ones_like(emb.forward(indices, offsets)))
    assert_same(emb.rows("a", np.arange(3)), before, "rows")
