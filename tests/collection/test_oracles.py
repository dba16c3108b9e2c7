"""A hundred steps of every optimizer against its textbook in double precision."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import make_cache
from oracles import DECAYS, SETTINGS, Oracle, follow

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
ROWS, DIM, LR = 30, 9, 0.05


def collection(optimizer: Any, policy: str | None = None) -> Any:
    return on_device.make(
        [mpe.TableConfig("t", ROWS, DIM)], cache=make_cache(policy, 2), optimizer=optimizer
    )


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", [None, "lfu"])
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_hundred_steps_follow_the_oracle(kind: str, mode: str, policy: str | None) -> None:
    emb = collection(kinds.make(kind, LR, mode), policy)
    start = emb.rows("t", np.arange(ROWS))
    follow(emb, "t", Oracle(kind, start, LR, mode, SETTINGS[kind]), 100)


@pytest.mark.parametrize("lr_power", [-0.7, -1.0, 0.0])
def test_ftrl_follows_the_oracle_with_other_powers(lr_power: float) -> None:
    settings = SETTINGS["ftrl"] | {"lr_power": lr_power}
    emb = collection(mpe.Ftrl(LR, **settings))
    start = emb.rows("t", np.arange(ROWS))
    follow(emb, "t", Oracle("ftrl", start, LR, "none", settings), 100)


@pytest.mark.torch
@pytest.mark.pairwise
@pytest.mark.parametrize("policy", [None, "lru"])
@pytest.mark.parametrize("kind", ["adam", "adagrad", "sgd", "sgd_momentum"])
def test_a_hundred_steps_follow_pytorch(kind: str, policy: str | None) -> None:
    from torch_oracles import TorchOracle

    emb = collection(kinds.make(kind, LR), policy)
    start = emb.rows("t", np.arange(ROWS))
    follow(emb, "t", TorchOracle(kind, start, LR, SETTINGS[kind]), 100)
