"""The reference's optimizers: against double precision, PyTorch, and exact facts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracles import DECAYS, SETTINGS, Oracle, follow
from reference import RefCollection
from reference.optim import OWN, STATES, coefficients, power_of, rule_of
from reference.power import power

import mpembed as mpe

ROWS, DIM, STEPS, LR = 30, 9, 100, 0.05


def optimizer(kind: str, mode: str = "none", lr: float = LR, **others: Any) -> Any:
    """An optimizer as the reference reads it."""
    name = "SGD" if kind.startswith("sgd") else kind.title().replace("_", "")
    values = SETTINGS[kind] | {"lr": lr, "weight_decay": DECAYS[mode]} | others
    return type(name, (), values | {"weight_decay_mode": mode})()


def collection(one: Any) -> RefCollection:
    table: dict[str, Any] = {"precision": "fp32", "pooling": "sum", "init": None, "lr": None}
    table |= {"optimizer": None, "trainable": True, "table_id": None, "first_row": 0}
    table |= {"total_rows": None, "placement": "device", "embedding_dim": DIM, "name": "t"}
    return RefCollection([SimpleNamespace(**table, num_embeddings=ROWS)], None, one)


def start(emb: RefCollection) -> Any:
    return emb.rows("t", np.arange(ROWS))


def test_the_reference_has_the_states_of_the_registry() -> None:
    assert set(STATES) - set(OWN) == set(SETTINGS) == set(mpe.registry.OPTIMIZERS)


@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_hundred_steps_follow_the_oracle(kind: str, mode: str) -> None:
    emb = collection(optimizer(kind, mode))
    follow(emb, "t", Oracle(kind, start(emb), LR, mode, SETTINGS[kind]), STEPS)


@pytest.mark.parametrize("lr_power", [-0.5, -0.7, -0.3, -1.0, 0.0])
def test_ftrl_follows_the_oracle_with_any_power(lr_power: float) -> None:
    emb = collection(optimizer("ftrl", lr_power=lr_power))
    settings = SETTINGS["ftrl"] | {"lr_power": lr_power}
    follow(emb, "t", Oracle("ftrl", start(emb), LR, "none", settings), STEPS)


@pytest.mark.parametrize("p", [0.5, 0.3, 0.7, 0.999, 1.0, 0.01])
def test_powers_are_right_to_a_few_units(p: float) -> None:
    x = np.exp(np.linspace(np.log(1e-30), np.log(1e30), 20001)).astype(np.float32)
    x = np.concatenate([x, np.arange(1, 4000, dtype=np.float32) / 1000])
    exact = x.astype(np.float64) ** np.float64(np.float32(p))
    assert (np.abs(power(x, np.float32(p)) / exact - 1) < 8 * 2.0**-24).all()


def test_powers_below_the_normal_numbers_are_zero() -> None:
    x = np.array([2.0**-149, 2.0**-130, 2.0**-120], np.float32)
    assert power(x, np.float32(1)).tolist() == [0, 0, 2.0**-120]
    assert (power(x, np.float32(0.7)) > 0).all()


def test_powers_of_zero_and_by_zero() -> None:
    x = np.array([0.0, 1.0, 2.0], np.float32)
    for p in (0.3, 0.5, 1.0):
        assert power(x, np.float32(p))[:2].tolist() == [0, 1]
    assert power(x, np.float32(0)).tolist() == [1, 1, 1]


def test_whole_powers_and_coefficients_of_many_updates() -> None:
    assert power_of(0.5, 10) == 2.0**-10
    assert power_of(0.0, 3) == 0
    assert power_of(0.999, 10**12) == 0
    c = coefficients(rule_of(optimizer("adam")), 10**12)
    assert c["rate"] == np.float32(LR)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["adam", "adagrad", "sgd", "sgd_momentum"])
def test_a_hundred_steps_follow_pytorch(kind: str) -> None:
    from torch_oracles import TorchOracle

    emb = collection(optimizer(kind))
    follow(emb, "t", TorchOracle(kind, start(emb), LR, SETTINGS[kind]), STEPS)
