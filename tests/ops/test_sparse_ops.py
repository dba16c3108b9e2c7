"""The sparse optimizers of mpembed.ops against a collection that does the same."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from helpers import Array

import mpembed as mpe
from mpembed import ops

ROWS = np.array([3, 0, 3, 9, 3])
GRADS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
KINDS: dict[str, tuple[Any, Any]] = {
    "sgd": (ops.sgd_, mpe.SGD),
    "adagrad": (ops.adagrad_, mpe.Adagrad),
    "rowwise_adagrad": (ops.rowwise_adagrad_, mpe.RowwiseAdagrad),
}


def read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array


DECAYS = [
    {},
    {"weight_decay": 0.1, "weight_decay_mode": "l2"},
    {"weight_decay": 0.1, "weight_decay_mode": "decoupled"},
]


def test_every_optimizer_has_its_function() -> None:
    assert set(KINDS) == set(mpe.registry.OPTIMIZERS)


@pytest.mark.pairwise
@pytest.mark.parametrize("decay", DECAYS, ids=["none", "l2", "decoupled"])
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_as_a_collection(kind: str, precision: str, decay: dict[str, Any]) -> None:
    update, optimizer = KINDS[kind]
    table = mpe.TableConfig("t", 10, 6, precision=precision, pooling="none")
    emb = mpe.EmbeddingBagCollection([table], optimizer=optimizer(lr=0.3, **decay), seed=8)
    arrays = {name: array.copy() for name, array in emb.state_arrays().items()}
    state = [arrays["table.t.state"]] if "table.t.state" in arrays else []
    emb.forward(ROWS, np.array([0, 5]))
    emb.backward({"t": GRADS})
    rows = arrays["table.t.rows"]
    left = update(
        rows,
        ROWS,
        GRADS,
        *state,
        lr=0.3,
        precision=precision,
        dim=6,
        seed=8,
        step=emb.step,
        **decay,
    )
    assert left == 0
    np.testing.assert_array_equal(rows, emb.state_arrays()["table.t.rows"])
    if state:
        np.testing.assert_array_equal(state[0], emb.state_arrays()["table.t.state"])


def test_fp32_matrix_in_place_and_nonfinite_rows_kept() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.ones(10, 6)
    grads = GRADS.copy()
    grads[1, 2] = np.inf
    assert ops.sgd_(weights, ROWS, grads, lr=1.0) == 1
    assert (weights[0] == 1).all()
    expected = 1 - GRADS[[0, 2, 4]].astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(weights[3].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_jax_tensors(kind: str) -> None:
    """Tables and state of PyTorch change in place; those of JAX are inputs only."""
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    state: list[Array] = []
    if kind != "sgd":
        state = [np.ones((10, 6) if kind == "adagrad" else 10, np.float32)]
    weights, update = np.ones((10, 6), np.float32), KINDS[kind][0]
    theirs = [torch.from_numpy(a.copy()) for a in (weights, *state)]
    assert update(weights, ROWS, GRADS, *state, lr=0.5) == 0
    assert update(theirs[0], jnp.asarray(ROWS), jnp.asarray(GRADS), *theirs[1:], lr=0.5) == 0
    for mine, other in zip((weights, *state), theirs, strict=True):
        assert other.numpy().tobytes() == mine.tobytes()
    with pytest.raises(BufferError, match="^weights: is written to"):
        update(jnp.ones((10, 6)), ROWS, GRADS, *state, lr=0.5)
    with pytest.raises(BufferError, match=r"^weights: requires grad"):
        update(torch.ones(10, 6, requires_grad=True), ROWS, GRADS, *state, lr=0.5)


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_keyword_is_spelled_out(kind: str) -> None:
    update = KINDS[kind][0]
    names = set(inspect.signature(update).parameters)
    assert names >= {"precision", "dim", "rounding", "seed", "step", "stream", "lr"}
    assert names >= {"weight_decay", "weight_decay_mode"}
    assert ("eps" in names) == (kind != "sgd")
    with pytest.raises(TypeError, match=rf"{kind}_\(\) got an unexpected keyword argument 'sed'"):
        update(np.ones((10, 6), np.float32), ROWS, GRADS, lr=0.1, sed=3)


def test_an_index_error_speaks_of_rows() -> None:
    with pytest.raises(IndexError, match=r"index 10 at position 1 of rows is out of range; 2 such"):
        ops.sgd_(np.ones((10, 6), np.float32), np.array([1, 10, -1, 2, 3]), GRADS, lr=0.1)
