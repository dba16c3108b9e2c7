"""The sparse optimizers of mpembed.ops against a collection that does the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpembed as mpe
from mpembed import ops

ROWS = np.array([3, 0, 3, 9, 3])
GRADS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
KINDS: dict[str, tuple[Any, Any]] = {
    "sgd": (ops.sgd_, mpe.SGD),
    "adagrad": (ops.adagrad_, mpe.Adagrad),
    "rowwise_adagrad": (ops.rowwise_adagrad_, mpe.RowwiseAdagrad),
}
DECAYS = [
    {},
    {"weight_decay": 0.1, "weight_decay_mode": "l2"},
    {"weight_decay": 0.1, "weight_decay_mode": "decoupled"},
]


def test_every_optimizer_has_its_function() -> None:
    assert set(KINDS) == set(mpe.registry.OPTIMIZERS)


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
    "read-only": ({"weights": np.broadcast_to(np.float32(1), (10, 6))}, Exception, "weights"),
    "dim": ({"dim": 5}, ValueError, "weights"),
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
