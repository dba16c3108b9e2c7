"""The sparse optimizers of mpembed.ops against a collection that does the same."""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any

import kinds
import numpy as np
import pytest
from helpers import Array

import mpembed as mpe
from mpembed import ops

ROWS = np.array([3, 0, 3, 9, 3])
GRADS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
#: How each optimizer of the registry is called.
CALLS: dict[str, Any] = {
    kind: ops.sgd_ if kind == "sgd_momentum" else getattr(ops, f"{kind}_")
    for kind in mpe.registry.OPTIMIZERS
}
COUNTED = [name for name, call in CALLS.items() if "updates" in inspect.signature(call).parameters]


def read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array


def settings_of(kind: str, mode: str = "none") -> dict[str, Any]:
    """Return an optimizer's settings that its operator takes."""
    known = inspect.signature(CALLS[kind]).parameters
    settings = kinds.make(kind, 0.3, mode).settings()
    return {name: value for name, value in settings.items() if name in known}


def starting_states(kind: str, fill: float = 1.0) -> list[Array]:
    shapes = {mpe.registry.STATE_ROW: (10,), mpe.registry.STATE_ELEMENT: (10, 6)}
    return [np.full(shapes[s.shape], fill, np.float32) for s in kinds.make(kind).states]


@pytest.mark.pairwise
@pytest.mark.parametrize("mode", mpe.registry.WEIGHT_DECAYS)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
@pytest.mark.parametrize("name", kinds.NAMES)
def test_same_bytes_as_a_collection(name: str, precision: str, mode: str) -> None:
    assert_same_bytes(name, precision, mode, mpe.registry.DEFAULT_ROUNDING)


@pytest.mark.pairwise
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
@pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS)
def test_same_bytes_with_every_rounding(rounding: str, precision: str) -> None:
    assert_same_bytes("adagrad", precision, "none", rounding)


def assert_same_bytes(name: str, precision: str, mode: str, rounding: str) -> None:
    """Train three steps by the operation and by a collection, and compare rows and states."""
    kind = name.removesuffix("_bf16").removesuffix("_mixed")
    optimizer = kinds.named(name, 0.3, mode)
    table = mpe.TableConfig("t", 10, 6, precision=precision, pooling="none")
    emb = mpe.EmbeddingBagCollection([table], optimizer=optimizer, seed=8, rounding=rounding)
    arrays = {name: array.copy() for name, array in emb.state_arrays().items()}
    rows = arrays["table.t.rows"]
    states = [arrays[f"table.t.{state.name}"] for state in optimizer.states]
    own = settings_of(kind, mode)
    for number in (1, 2, 3):
        emb.forward(ROWS, np.array([0, 5]))
        emb.backward({"t": GRADS})
        count = {"updates": number} if kind in COUNTED else {}
        common = {"precision": precision, "dim": 6, "seed": 8, "step": emb.step}
        common["rounding"] = rounding
        assert CALLS[kind](rows, ROWS, GRADS, *states, **own, **count, **common) == 0
    np.testing.assert_array_equal(rows, emb.state_arrays()["table.t.rows"])
    for state, values in zip(optimizer.states, states, strict=True):
        np.testing.assert_array_equal(values, emb.state_arrays()[f"table.t.{state.name}"])


def test_fp32_matrix_in_place_and_nonfinite_rows_kept() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.ones(10, 6)
    grads = GRADS.copy()
    grads[1, 2] = np.inf
    assert ops.sgd_(weights, ROWS, grads, lr=1.0) == 1
    assert (weights[0] == 1).all()
    expected = 1 - GRADS[[0, 2, 4]].astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(weights[3].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CALLS)
def test_torch_and_jax_tensors(kind: str) -> None:
    """Tables and states of PyTorch change in place; those of JAX are inputs only."""
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    states, weights = starting_states(kind), np.ones((10, 6), np.float32)
    own = settings_of(kind) | ({"updates": 3} if kind in COUNTED else {})
    update = partial(CALLS[kind], **own)
    theirs = [torch.from_numpy(a.copy()) for a in (weights, *states)]
    assert update(weights, ROWS, GRADS, *states) == 0
    assert update(theirs[0], jnp.asarray(ROWS), jnp.asarray(GRADS), *theirs[1:]) == 0
    for mine, other in zip((weights, *states), theirs, strict=True):
        assert other.numpy().tobytes() == mine.tobytes()
    with pytest.raises(BufferError, match="^weights: is written to"):
        update(jnp.ones((10, 6)), ROWS, GRADS, *states)
    with pytest.raises(BufferError, match=r"^weights: requires grad"):
        update(torch.ones(10, 6, requires_grad=True), ROWS, GRADS, *states)


def test_momentum_and_its_state_come_together() -> None:
    weights, state = np.ones((10, 6), np.float32), np.zeros((10, 6), np.float32)
    with pytest.raises(ValueError, match=r"state must be given with momentum=0\.9"):
        ops.sgd_(weights, ROWS, GRADS, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"state must be None with momentum=0\.0"):
        ops.sgd_(weights, ROWS, GRADS, state, lr=0.1)
    assert (weights == 1).all()


@pytest.mark.parametrize("updates", [0, -1, 2**63])
def test_updates_are_counted_from_one(updates: int) -> None:
    weights, states = np.ones((10, 6), np.float32), starting_states("adam")
    with pytest.raises(ValueError, match="updates must be in 1"):
        ops.adam_(weights, ROWS, GRADS, *states, lr=0.1, updates=updates)
    assert (weights == 1).all()


def test_bfloat16_state_of_torch_is_uint16_state() -> None:
    torch = pytest.importorskip("torch")
    weights, bits = np.ones((10, 6), np.float32), np.full((10, 6), 0x3F80, np.uint16)
    other, half = torch.ones(10, 6), torch.ones(10, 6, dtype=torch.bfloat16)
    for step in range(1, 5):
        ops.adagrad_(weights, ROWS, GRADS, bits, lr=0.1, seed=3, step=step)
        ops.adagrad_(other, ROWS, GRADS, half, lr=0.1, seed=3, step=step)
    assert other.numpy().tobytes() == weights.tobytes()
    assert half.view(torch.uint16).numpy().tobytes() == bits.tobytes()


def test_no_rows_change_nothing() -> None:
    weights = np.ones((10, 6), np.float32)
    none, grads = np.zeros(0, np.int32), np.zeros((0, 6), np.float32)
    assert ops.sgd_(weights, none, grads, lr=1.0, weight_decay=0.5, weight_decay_mode="l2") == 0
    assert (weights == 1).all()


def test_bf16_state() -> None:
    weights, bits = np.ones((10, 6), np.float32), np.zeros((10, 6), np.uint16)
    ops.adagrad_(weights, ROWS, GRADS, bits, lr=0.1, rounding="nearest")
    total = np.float32(GRADS[0] + GRADS[2] + GRADS[4]) ** 2
    np.testing.assert_allclose(
        (bits[3].astype(np.uint32) << 16).view(np.float32), total, rtol=2**-7
    )


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "row": ({"rows": np.array([3, 0, 10, 9, 3])}, IndexError, "index 10 at position 2"),
    "grads": ({"grads": GRADS[:4]}, ValueError, "grads"),
    "lr": ({"lr": float("nan")}, ValueError, "lr"),
    "state": ({"state": np.zeros(9, np.float32)}, ValueError, "state"),
    "state type": ({"state": np.zeros(10)}, TypeError, "state"),
    "weights": ({"weights": np.ones((10, 6))}, TypeError, "weights"),
    "read-only": ({"weights": read_only(np.ones((10, 6), "f4"))}, BufferError, "weights"),
    "broadcast": ({"weights": np.broadcast_to(np.float32(1), (10, 6))}, ValueError, "weights"),
    "frozen state": ({"state": read_only(np.zeros(10, "f4"))}, BufferError, "state"),
    "no state": ({"state": None}, TypeError, "state"),
    "no table": ({"weights": np.ones((0, 6), "f4")}, ValueError, "weights must not be empty"),
    "rows type": ({"rows": ROWS.astype("f4")}, TypeError, "rows"),
    "negative row": ({"rows": np.array([3, 0, 3, -1, 3])}, IndexError, "index -1 at position 3"),
    "grads type": ({"grads": GRADS.astype("f8")}, TypeError, "grads"),
    "precision": ({"precision": "int4"}, TypeError, "weights: expected dtype uint8"),
    "values": (
        {"weights": np.ones((10, 6), np.float16), "precision": "fp16"},
        TypeError,
        r"got float16; pass the bytes .* uint8 view of shape \(E, row_bytes\), with dim=",
    ),
    "dim": ({"dim": 5}, ValueError, "weights"),
    "dim type": ({"dim": 6.0}, TypeError, "dim must be an integer"),
    "stream": ({"stream": 0}, ValueError, "stream"),
    "step": ({"step": 2**40}, ValueError, "step"),
    "rounding": ({"rounding": "down"}, ValueError, "rounding"),
    "eps": ({"eps": 0.0}, ValueError, "eps"),
    "decay": ({"weight_decay": 0.1}, ValueError, "weight_decay_mode"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_errors_change_nothing(name: str) -> None:
    override, error, message = BAD[name]
    arguments: dict[str, Any] = {
        "weights": np.ones((10, 6), np.float32),
        "rows": ROWS,
        "grads": GRADS,
        "state": np.zeros(10, np.float32),
        "lr": 0.1,
        **override,
    }
    before = np.array(arguments["weights"])
    with pytest.raises(error, match=message):
        ops.rowwise_adagrad_(**arguments)
    np.testing.assert_array_equal(arguments["weights"], before)


@pytest.mark.parametrize("kind", CALLS)
def test_every_keyword_is_spelled_out(kind: str) -> None:
    update, states = CALLS[kind], starting_states(kind)
    names = set(inspect.signature(update).parameters)
    assert names >= {"precision", "dim", "rounding", "seed", "step", "stream", "lr"}
    assert names >= {"weight_decay", "weight_decay_mode"}
    own = settings_of(kind) | ({"updates": 1} if kind in COUNTED else {})
    documented = inspect.getdoc(update) or ""
    for name in names:
        assert re.search(rf"(?m)^(.*, )?{name}(,.*)?( :.*)?$", documented), name
    message = rf"{update.__name__}\(\) got an unexpected keyword argument 'sed'; .* seed, step"
    with pytest.raises(TypeError, match=message):
        update(np.ones((10, 6), np.float32), ROWS, GRADS, *states, **own, sed=3)


def test_an_index_error_speaks_of_rows() -> None:
    with pytest.raises(IndexError, match=r"index 10 at position 1 of rows is out of range; 2 such"):
        ops.sgd_(np.ones((10, 6), np.float32), np.array([1, 10, -1, 2, 3]), GRADS, lr=0.1)
