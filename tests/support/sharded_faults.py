"""Ranks that go wrong, and what the others find; `ranks.run` calls it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import sharded_models as models
import torch
from sharded_training import sharder
from tensordict import TensorDict
from torch import nested
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

SIZE = 4


def step(
    rank: int,
    world_size: int,
    plan: Mapping[str, Any],
    fault: str,
    stays: bool,
    options: Mapping[str, Any],
) -> Any:
    """Train a step, then one in which the last rank goes wrong; return what comes of it.

    The answer is the error's kind and text, or "worked". `stays` keeps the process that raised
    alive, so that the others find out by their timeout alone.
    """
    model = models.sharded(models.collection(), sharder("adagrad", options), plan)
    models.train(model, [models.batch(0, SIZE * world_size)])
    faulty = rank == world_size - 1
    if faulty and fault == "dies":
        os._exit(1)
    try:
        features = _features(rank, world_size, fault if faulty else "")
        pooled = model(features).values()
        scale = float("inf") if faulty and fault == "infinite" else 1.0
        (pooled * scale).square().sum().backward()
    except Exception as error:
        if stays and faulty:
            time.sleep(8)  # longer than the group's timeout
        return type(error).__name__, str(error)
    return "worked"


def warned(rank: int, world_size: int, tables: Mapping[str, Any]) -> list[str]:
    """Train two steps with settings for tables; return the warnings of mpembed."""
    made = sharder("adagrad", {"tables": tables})
    model = models.sharded(models.collection(), made, models.table_wise(world_size))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        models.train(model, [models.batch(seed, SIZE * world_size) for seed in range(2)])
    return [str(one.message) for one in found if "tables=" in str(one.message)]


def unexpected(rank: int, world_size: int, name: str) -> list[str]:
    """Load a state that has a table of another name too; return the keys that were not expected."""
    model = models.sharded(models.collection(), sharder("sgd", {}), models.row_wise())
    state = model.state_dict()
    state[f"embedding_bags.{name}.mpembed_shards.0-1.about"] = torch.zeros(1)
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.missing_keys
    return list(loaded.unexpected_keys)


def of_tensor_dict(rank: int, world_size: int) -> bool:
    """Return whether a TensorDict gives the means that a KeyedJaggedTensor gives."""
    tables = [one._replace(pooling="mean") for one in models.TABLES]
    model = models.sharded(models.collection(tables), sharder("sgd", {}), models.row_wise())
    given = models.batch(rank, SIZE).jagged()
    parts = {
        key: nested.nested_tensor_from_jagged(given[key].values(), offsets=given[key].offsets())
        for key in given.keys()  # noqa: SIM118 (no dict)
    }
    found = model(TensorDict(parts, batch_size=[SIZE])).to_dict()
    expected = model(given).to_dict()
    return all(torch.equal(found[key], values) for key, values in expected.items())


def _features(rank: int, world_size: int, fault: str) -> KeyedJaggedTensor:
    """Return a rank's features, with a fault."""
    size = SIZE + 1 if fault == "batch" else SIZE
    batch = models.batch(rank, size)
    if fault == "index":
        batch.values[0][-1] = 1_000
    elif fault == "negative":
        batch.values[0][-1] = -1
    elif fault == "empty":
        batch = batch._replace(
            lengths=torch.zeros_like(batch.lengths), values=[one[:0] for one in batch.values]
        )
    features = batch.jagged()
    if fault == "variable":
        lengths = batch.lengths[:, :2].reshape(-1)
        count = int(lengths.sum())
        return KeyedJaggedTensor(
            batch.keys,
            torch.zeros(count, dtype=torch.int64),
            lengths=lengths,
            stride_per_key_per_rank=[[2]] * len(batch.keys),
            inverse_indices=(batch.keys, torch.zeros(len(batch.keys), SIZE, dtype=torch.int64)),
        )
    return features
