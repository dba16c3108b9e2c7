"""What ranks do in the tests of sharded state: save with a plan, or load with another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from sharded_plans import TABLES, make, parts, train, whole_state
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import mpembed as mpe
from mpembed.torch import sharded

STEPS, ALL_STEPS = 11, 20
SMALL = mpe.CacheConfig(load_factor=0.2, policy="lfu", ways=8)
LARGE = mpe.CacheConfig(load_factor=4.0, policy="lfu")


class Save(NamedTuple):
    """A checkpoint: what it was saved with, where, and whether by ``async_save``."""

    plan: str
    optimizer: str
    path: Path
    later: bool


def save(rank: int, world: int, saves: Sequence[Save]) -> bool:
    """Train and save, and write down what was saved; with `later` train while it is written."""
    for one in saves:
        some, state = parts(one.plan, rank, world), {}
        one.path.mkdir(exist_ok=True)
        if some:
            emb = make(some, one.optimizer, SMALL)
            train(emb, some, 0, 4)
            emb.flush()  # some cached rows are clean, and not what their tables hold
            train(emb, some, 4, STEPS)
            state = dict(sharded.state_dict(emb, group=dist.group.WORLD))
            (one.path / f"truth{rank}.json").write_text(json.dumps(whole_state(emb, some)))
        if one.later:
            written = async_save({"model": state}, checkpoint_id=one.path / "dcp")
            assert isinstance(written, Future)
            if some:
                train(emb, some, STEPS, ALL_STEPS)
            written.result()
        else:
            dcp_save({"model": state}, checkpoint_id=one.path / "dcp")
    return True  # `ranks.run` takes None for a rank that died


def load(rank: int, world: int, plans: Sequence[str], saves: Sequence[Save], wanted: Any) -> int:
    """Load each save with each plan into a large cache, compare, and train to the end.

    `wanted` has fp32 rows after all steps. Return how many rows were cached.
    """
    cached = 0
    for one in saves:
        truth: dict[str, Any] = {}
        for path in one.path.glob("truth*.json"):
            truth.update(json.loads(path.read_text()))
        assert len(truth) == sum(whole.rows for whole in TABLES)
        for plan in plans:
            some, state = parts(plan, rank, world), {}
            if some:
                emb = make(some, one.optimizer, LARGE)
                train(emb, some, 0, 2)  # all of it is to be replaced
                state = dict(sharded.state_dict(emb, group=dist.group.WORLD))
            held = {"model": state}
            dcp_load(held, checkpoint_id=one.path / "dcp", planner=sharded.LoadPlanner())
            if some:
                report = sharded.load_state_dict(emb, held["model"])
                assert not any("without room" in line for line in report.converted), report
                found = whole_state(emb, some)
                for row, values in found.items():
                    assert values == truth[row], (one, plan, row)
                    cached += values["slot"] is not None
                train(emb, some, STEPS, ALL_STEPS)
                emb.flush()
                for row, values in whole_state(emb, some).items():
                    if row in wanted:
                        assert without_slot(values) == wanted[row], (one, plan, row)
    return cached


def without_slot(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a table has of a row."""
    return {key: value for key, value in values.items() if key != "slot"}


def after_all_steps(optimizer: str) -> dict[str, Any]:
    """Return fp32 rows and their states after all steps in one process without a cache."""
    some = parts("tw", 0, 1)
    emb = make(some, optimizer)
    train(emb, some, 0, ALL_STEPS)
    return {
        row: without_slot(values)
        for row, values in whole_state(emb, some).items()
        if TABLES[int(row.split()[0])].precision == "fp32"
    }
