"""States made to do harm, by ``load_state_dict`` and pickle: refused before anything changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checkpoint_files import set_of

pytest.importorskip("torch")

import torch
from torch_modules import bag, state, train

import mpembed as mpe

pytestmark = pytest.mark.torch
CACHE = "tables.cache.6.rowwise_adagrad."
SETS = 2


def trained(seed: int) -> Any:
    module = bag(
        cache=mpe.CacheConfig(num_sets=SETS, ways=8, policy="lfu"),
        optimizer=mpe.RowwiseAdagrad(lr=0.1),
        seed=seed,
    )
    train(module)
    return module


def everywhere(tags: Any) -> None:
    tags[...] = 3


def elsewhere(tags: Any) -> None:
    tags[...] = 2**48 - 1
    tags[1 - set_of(3, SETS), 0] = 3


def beyond(tags: Any) -> None:
    tags[...] = 2**48 - 1
    tags[set_of(10**6, SETS), 0] = 10**6


def nan(values: Any) -> None:
    values[0, 1] = np.nan


def many(counts: Any) -> None:
    counts[0, 0] = 256


def negative(counts: Any) -> None:
    counts[0, 0] = -1


def infinite_bias(rows: Any) -> None:
    """Codes, scale and bias of a row are followed by its state, an FP32 value."""
    rows[1, 5:7] = np.array([0x7C00], np.uint16).view(np.uint8)


def nan_state(rows: Any) -> None:
    rows[1, 7:] = np.array([np.nan], np.float32).view(np.uint8)


DAMAGE: list[tuple[str, Callable[[Any], None]]] = [
    (CACHE + "tags", everywhere),
    (CACHE + "tags", elsewhere),
    (CACHE + "tags", beyond),
    (CACHE + "rows", nan),
    (CACHE + "values", nan),
    (CACHE + "meta", many),
    ("tables.stats", negative),
    ("tables.0.records", infinite_bias),
    ("tables.0.records", nan_state),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_state_dict(name: str, damage: Callable[[Any], None]) -> None:
    module, given = trained(0), copy.deepcopy(trained(9).state_dict())
    damage(given[name].numpy())
    before = state(module)
    with pytest.raises(RuntimeError, match="the state: (cache|table|stats)"):
        module.load_state_dict(given)
    assert state(module) == before
    train(module)


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_pickle(name: str, damage: Callable[[Any], None]) -> None:
    """Of a module whose memory was written, as its file may be."""
    module = trained(0)
    damage(module.state_dict()[name].numpy())
    for made in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ValueError, match="the state: "):
            pickle.loads(made(module))


def test_what_is_written_in_place_is_found() -> None:
    module = trained(0)
    module.state_dict()["tables.0.records"][1, 5:7] = torch.tensor([0, 0x7C])
    with pytest.raises(RuntimeError, match="has damaged the tables"):
        module.state_dict()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": NaN}', '{"format": 4, "format": 4}', "\xff"]
)
def test_settings(text: str) -> None:
    module, given = trained(0), copy.deepcopy(trained(9).state_dict())
    given["tables.settings"] = torch.frombuffer(bytearray(text, "latin-1"), dtype=torch.uint8)
    before = state(module)
    with pytest.raises(RuntimeError, match="settings of the state is damaged"):
        module.load_state_dict(given)
    assert state(module) == before
