"""What ranks do in the tests of the state of TorchRec's sharded collections."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sharded_models as models
import sharded_training as training
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import mpembed as mpe
from mpembed.torch import sharded
from mpembed.torch.torchrec import MpembedSequenceSharder

BEFORE, AFTER = 4, 3
RATE = 0.03
OF_ONE_DIM = models.TABLES[:2]  # as tables without pooling have to be


class Seen(NamedTuple):
    """What a rank held at the save or after the load, its rates then, and later outputs."""

    held: list[models.Held]
    rates: dict[str, float]
    outputs: list[models.Outputs]


def move(
    rank: int,
    world_size: int,
    kind: str,
    plans: Sequence[training.Plan],
    path: Path,
    local_size: int | None = None,
) -> list[Seen]:
    """Train with the first plan and save, load with each; return what is held each time.

    `kind` is "pooled" or "sequences"; every host has `local_size` ranks.
    """
    os.environ["LOCAL_WORLD_SIZE"] = str(local_size or world_size)
    options: dict[str, Any] = {"precision": "int4", "cache": mpe.CacheConfig(4.0)}
    seen: list[Seen] = []
    for plan in (plans[0], *plans):
        if kind == "pooled":
            sharder: Any = training.sharder("adam", options)
            model = models.sharded(models.collection(), sharder, plan, local_size)
        else:
            sharder = MpembedSequenceSharder(training.optimizers()["adam"], **options)
            model = models.sharded(models.sequences(OF_ONE_DIM), sharder, plan, local_size)
        if not seen:
            tables = models.TABLES if kind == "pooled" else OF_ONE_DIM
            for one in _batches(0, BEFORE, tables):
                outputs = model(one.jagged(models.local(rank, world_size, 8)))
                loss = models.squared if kind == "pooled" else models.squared_sequences
                loss(outputs).backward()
            dcp_save(_state(model), checkpoint_id=path)
        else:
            state = _state(model)
            dcp_load(state, checkpoint_id=path, planner=sharded.LoadPlanner())
            model.load_state_dict(state["model"])
        seen.append(Seen(models.all_held(model), _rates(model), []))
    return seen


def by_the_page(rank: int, world_size: int, code: Sequence[str], path: Path) -> list[Seen]:
    """Save and load with the functions of the page; return what is held before and after."""
    page: dict[str, Any] = {}
    for block in code:
        exec(compile(block, "docs/distributed_state.md", "exec"), page)
    seen = []
    group = dist.new_group(backend="gloo")
    for number, plan in enumerate((models.row_wise(), models.table_wise(world_size))):
        model = _model(plan, "adagrad", {"precision": "int8", "cache": mpe.CacheConfig(4.0)})
        if number == 0:
            models.train(model, _batches(0, BEFORE))
            page["save"](model, path / "one")
            seen.append(Seen(models.all_held(model), _rates(model), []))
            written = page["save_while_training"](model, path / "two", group)
            models.train(model, _batches(BEFORE, AFTER))
            written.result()
        else:
            for name in ("one", "two"):
                page["load"](model, path / name)
                seen.append(Seen(models.all_held(model), _rates(model), []))
        local, there = models.shards(model)[0].collection, dist.group.WORLD
        page["save_collection"](local, path / f"local{number}", there)
        page["load_collection"](local, path / f"local{number}", there)
    return seen


def _model(plan: training.Plan, optimizer: str, options: Mapping[str, Any]) -> Any:
    return models.sharded(models.collection(), training.sharder(optimizer, options), plan)


def _state(model: Any) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}


def _rates(model: Any) -> dict[str, float]:
    return {one.table: one.collection.optimizers[one.key].lr for one in models.shards(model)}


def _batches(
    begin: int, count: int, tables: Sequence[models.Table] = models.TABLES
) -> Sequence[models.Batch]:
    return [models.batch(begin + step, 8, tables) for step in range(count)]


def save(
    rank: int,
    world_size: int,
    plan: training.Plan,
    optimizer: str,
    options: Mapping[str, Any],
    path: Path,
) -> Seen:
    """Train, change the rate, save; go on."""
    model = _model(plan, optimizer, options)
    models.train(model, _batches(0, BEFORE))
    for group in model.fused_optimizer.param_groups:
        group["lr"] = RATE
    model.fused_optimizer.step()
    dcp_save(_state(model), checkpoint_id=path)
    held = models.all_held(model)
    return Seen(held, _rates(model), models.train(model, _batches(BEFORE, AFTER)))


def load(
    rank: int,
    world_size: int,
    plan: training.Plan,
    optimizer: str,
    options: Mapping[str, Any],
    path: Path,
) -> Seen:
    """Train another model, load, go on."""
    model = _model(plan, optimizer, options)
    models.train(model, _batches(90, 1))  # all of it is to be replaced
    state = _state(model)
    dcp_load(state, checkpoint_id=path, planner=sharded.LoadPlanner())
    missing, unexpected = model.load_state_dict(state["model"])
    assert not missing, missing
    assert not unexpected, unexpected
    model.fused_optimizer.load_state_dict(state["optimizer"])
    held = models.all_held(model)
    return Seen(held, _rates(model), models.train(model, _batches(BEFORE, AFTER)))
