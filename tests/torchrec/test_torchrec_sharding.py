"""Every sharding type and mixture of them against one process, in FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import numpy as np
import ranks
import sharded_models as models
import sharded_training as training
import torch
from sharded_models import Table

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
PLANS: dict[str, dict[str, Any]] = {
    "rows": models.row_wise(),
    "columns": {name: ("cw", {"ranks": [0, 1]}) for name in ("t0", "t1", "t2")},
    "columns of one rank": {
        "t0": ("cw", {"ranks": [1, 1]}),
        "t1": ("tw", {"rank": 1}),
        "t2": ("cw", {"ranks": [1, 0]}),
    },
    "rows on a host": {name: ("twrw", {"host_index": 0}) for name in ("t0", "t1", "t2")},
    "grid": {name: ("grid", {"host_indexes": [0]}) for name in ("t0", "t1", "t2")},
    "mixed": {"t0": ("tw", {"rank": 1}), "t1": ("rw", {}), "t2": ("cw", {"ranks": [1, 0]})},
    "one rank": {name: ("tw", {"rank": 0}) for name in ("t0", "t1", "t2")},
}


def compare(
    folder: Path,
    plan: dict[str, Any],
    tables: tuple[Table, ...] = models.TABLES,
    *,
    world_size: int = 2,
    optimizer: str = "sgd",
    weighted: bool = False,
    local_size: int | None = None,
) -> None:
    """Train on all ranks and in one process from the same rows; the values agree to 1e-5."""
    batches = [models.batch(seed, 4 * world_size, tables, weighted=weighted) for seed in range(3)]
    generator = np.random.default_rng(0)
    rows = {one.name: generator.uniform(-1, 1, (one.rows, one.dim)) for one in tables}
    rows = {name: values.astype(np.float32) for name, values in rows.items()}
    arguments: Any = (plan, optimizer, {}, batches, tables, weighted, rows, local_size)
    results = ranks.succeed(ranks.run(training.train, world_size, folder, *arguments))
    own = training.optimizers()[optimizer]
    alone = models.unsharded(tables, own, "fp32", is_weighted=weighted)
    for name, values in rows.items():
        alone.tables.set_rows(name, np.arange(len(values)), values)
    outputs = models.train_alone(alone, batches, 1 / world_size)
    for step, expected in enumerate(outputs):
        found = models.whole([outputs[step] for outputs, _ in results])
        assert set(found) == set(expected)
        for name, one in expected.items():
            torch.testing.assert_close(found[name], one, rtol=1e-5, atol=1e-5)
    for table in tables:
        values = models.values_of([own for _, own in results], table.name, table.rows, table.dim)
        expected = alone.tables.rows(table.name, np.arange(table.rows))
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
        assert (values != rows[table.name]).any()  # it has trained


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_agrees_with_one_process(plan: str, tmp_path: Path) -> None:
    compare(tmp_path, PLANS[plan])


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_rows_on_two_ranks_keep_their_states(optimizer: str, tmp_path: Path) -> None:
    compare(tmp_path, PLANS["rows"], optimizer=optimizer)


@pytest.mark.parametrize("plan", ["mixed", "rows"])
def test_weights_of_features_multiply_rows(plan: str, tmp_path: Path) -> None:
    compare(tmp_path, PLANS[plan], weighted=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("plan", ["mixed", "rows", "grid", "rows on a host"])
def test_means_are_right_whatever_is_split(plan: str, weighted: bool, tmp_path: Path) -> None:
    tables = (
        Table("t0", 100, 8, ("f0", "f2"), "mean"),
        Table("t1", 50, 8, ("f1",), "mean"),
        Table("t2", 7, 12, ("f3",), "sum"),
    )
    compare(tmp_path, PLANS[plan], tables, weighted=weighted)


def test_tables_share_a_feature(tmp_path: Path) -> None:
    tables = (
        Table("t0", 40, 8, ("f0", "f1"), "mean"),
        Table("t1", 30, 8, ("f1",), "mean"),
        Table("t2", 20, 4, ("f1", "f0"), "sum"),
    )
    plan = {"t0": ("rw", {}), "t1": ("tw", {"rank": 0}), "t2": ("rw", {})}
    compare(tmp_path, plan, tables)


def test_a_shard_may_have_no_rows(tmp_path: Path) -> None:
    tables = (Table("t0", 1, 8, ("f0",)), Table("t1", 50, 8, ("f1",)))
    compare(tmp_path, models.row_wise(tables), tables)


@pytest.mark.exhaustive
@pytest.mark.parametrize("plan", ["rows", "mixed", "hosts"])
def test_four_ranks_agree_with_one_process(plan: str, tmp_path: Path) -> None:
    hosts = {
        "t0": ("twrw", {"host_index": 1}),
        "t1": ("grid", {"host_indexes": [0, 1]}),
        "t2": ("tw", {"rank": 3}),
    }
    mixed = {
        "t0": ("cw", {"ranks": [0, 3]}),
        "t1": ("rw", {}),
        "t2": ("rw", {}),
    }
    plans: dict[str, Any] = {"rows": models.row_wise(), "mixed": mixed, "hosts": hosts}
    local_size, width = (2, 256) if plan == "hosts" else (None, 8)  # a grid has 128 columns
    tables = (models.TABLES[0], Table("t1", 50, width, ("f1",), "mean"), models.TABLES[2])
    compare(tmp_path, plans[plan], tables, world_size=4, local_size=local_size)
