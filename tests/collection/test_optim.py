"""Optimizers as users see them: settings, one step against the textbook, state."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from helpers import Array

import mpembed as mpe
from mpembed import optim

ROWS, DIM = 5, 7
RNG = np.random.default_rng(3)
START = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
GRADS = RNG.standard_normal((4, DIM)).astype(np.float32)
HIT = np.array([3, 1, 3, 0])  # row 3 twice, rows 2 and 4 never
OPTIMIZERS: dict[str, Any] = {
    "sgd": mpe.SGD,
    "adagrad": mpe.Adagrad,
    "adagrad_bf16": lambda lr, **k: mpe.Adagrad(lr, state_precision="bf16", **k),
    "rowwise_adagrad": mpe.RowwiseAdagrad,
}
DECAYS = {"none": 0.0, "l2": 0.2, "decoupled": 0.2}


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


def textbook(name: str, mode: str, lr: float, eps: float, start: float) -> Array:
    """The rows after one step in double precision."""
    w, g = START.astype(np.float64), np.zeros((ROWS, DIM))
    np.add.at(g, HIT, GRADS.astype(np.float64))
    if mode == "l2":
        g = g + DECAYS[mode] * w
    decayed = w * (1 - lr * DECAYS[mode]) if mode == "decoupled" else w
    if name == "sgd":
        new = decayed - lr * g
    elif name == "rowwise_adagrad":
        h = start + (g**2).mean(axis=1, keepdims=True)
        new = decayed - lr * g / (np.sqrt(h) + eps)
    else:
        new = decayed - lr * g / (np.sqrt(start + g**2) + eps)
    touched = np.isin(np.arange(ROWS), HIT)
    return np.where(touched[:, None], new, w)


@pytest.mark.pairwise
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_is_the_textbook_step(name: str, mode: str, cached: bool) -> None:
    start = {} if name == "sgd" else {"eps": 0.25, "initial_accumulator_value": 0.5}
    optimizer = OPTIMIZERS[name](0.3, weight_decay=DECAYS[mode], weight_decay_mode=mode, **start)
    cache = mpe.CacheConfig(num_sets=1, ways=8) if cached else None
    after = step(collection(optimizer, cache=cache))
    expected = textbook(name, mode, 0.3, 0.25, 0.5)
    # A handful of FP32 operations on numbers below 10.
    np.testing.assert_allclose(after, expected, rtol=0, atol=10 * 2**-22)
    np.testing.assert_array_equal(after[[2, 4]], START[[2, 4]])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_zero_moves_nothing_but_state(name: str) -> None:
    emb = collection(OPTIMIZERS[name](0.0))
    np.testing.assert_array_equal(step(emb), START)
    state = emb.state_arrays().get("table.t.state", np.zeros(0)).reshape(-1, 1)
    touched = np.unique(np.flatnonzero(state) // max(1, len(state) // ROWS))
    assert touched.tolist() == ([] if name == "sgd" else [0, 1, 3])


def test_a_zero_gradient_leaves_adagrad_finite_and_in_place() -> None:
    for name in ("adagrad", "adagrad_bf16", "rowwise_adagrad"):
        emb = collection(OPTIMIZERS[name](0.1))
        np.testing.assert_array_equal(step(emb, np.zeros_like(GRADS)), START)


def test_state_is_what_the_page_says() -> None:
    shapes: dict[str, Any] = {
        "sgd": None,
        "adagrad": ((ROWS, DIM), np.float32, np.float32(0.75)),
        "adagrad_bf16": ((ROWS, DIM), np.uint16, 0x3F40),
        "rowwise_adagrad": ((ROWS,), np.float32, np.float32(0.75)),
    }
    for name, expected in shapes.items():
        start = {} if name == "sgd" else {"initial_accumulator_value": 0.75}
        state = collection(OPTIMIZERS[name](0.1, **start)).state_arrays().get("table.t.state")
        if expected is None:
            assert state is None
        else:
            assert state is not None
            assert (state.shape, state.dtype) == expected[:2]
            assert (state == expected[2]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_make_the_same_optimizer_again(name: str) -> None:
    start = {} if name == "sgd" else {"eps": 1e-5, "initial_accumulator_value": 0.25}
    made = OPTIMIZERS[name](0.125, weight_decay=0.5, weight_decay_mode="l2", **start)
    again = optim.OPTIMIZERS[made.name](**made.settings())
    assert repr(again) == repr(made)
    assert again.kernel_settings() == made.kernel_settings()
    assert repr(made).startswith(f"{type(made).__name__}(lr=0.125, weight_decay=0.5")
    assert again.state_precision == made.state_precision


def test_only_the_rate_can_be_set() -> None:
    optimizer = mpe.Adagrad(0.1)
    optimizer.lr = np.float32(0.5)  # type: ignore[assignment]
    assert optimizer.lr == 0.5
    for name in ("eps", "weight_decay", "weight_decay_mode", "state_precision", "state_shape"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, 1)
    for one in (mpe.SGD(0.1), optimizer, mpe.RowwiseAdagrad(0.1)):
        with pytest.raises(AttributeError, match="learning_rate"):
            one.learning_rate = 1  # type: ignore[union-attr]
        assert repr(pickle.loads(pickle.dumps(one))) == repr(one)


@pytest.mark.parametrize("make", [mpe.SGD, mpe.Adagrad, mpe.RowwiseAdagrad])
def test_every_keyword_is_spelled_out(make: Any) -> None:
    parameters = inspect.signature(make).parameters.values()
    assert {p.kind for p in parameters} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert {p.name for p in parameters} == set(make(0.1).settings())
    text = inspect.getdoc(make) or ""  # Python 3.13 strips the indentation itself
    for parameter in parameters:
        assert f"\n{parameter.name} : " in text
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


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("rate", "error"), BAD_RATES)
def test_bad_rates_are_refused_and_the_old_one_stays(
    name: str, rate: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="^lr "):
        OPTIMIZERS[name](rate)
    optimizer = OPTIMIZERS[name](0.25)
    with pytest.raises(error, match="^lr "):
        optimizer.lr = rate
    assert optimizer.lr == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": 1e-60}, "eps must be positive in float32"),
        ({"eps": float("nan")}, "eps"),
        ({"initial_accumulator_value": -1.0}, "initial_accumulator_value"),
        ({"initial_accumulator_value": float("inf")}, "initial_accumulator_value"),
        ({"weight_decay": -0.1, "weight_decay_mode": "l2"}, "weight_decay"),
        ({"weight_decay": 0.1}, "weight_decay_mode"),
        ({"weight_decay_mode": "L2"}, "weight_decay_mode must be one of 'none', 'l2'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    for make in (mpe.Adagrad, mpe.RowwiseAdagrad):
        with pytest.raises(ValueError, match=message):
            make(0.1, **settings)
