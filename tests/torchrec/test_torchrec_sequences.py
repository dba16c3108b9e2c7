"""Sharded tables without pooling against one process."""

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
TABLES = (
    Table("t0", 100, 8, ("f0", "f2")),
    Table("t1", 50, 8, ("f1",)),
    Table("t2", 7, 8, ("f3", "f1")),
)
PLANS: dict[str, dict[str, Any]] = {
    "tables": {name: ("tw", {"rank": i % 2}) for i, name in enumerate(("t0", "t1", "t2"))},
    "rows": models.row_wise(TABLES),
    "columns": {name: ("cw", {"ranks": [0, 1]}) for name in ("t0", "t1", "t2")},
    "mixed": {"t0": ("rw", {}), "t1": ("tw", {"rank": 1}), "t2": ("tw", {"rank": 0})},
}


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_agrees_with_one_process(plan: str, tmp_path: Path) -> None:
    batches = [models.batch(seed, 8, TABLES) for seed in range(3)]
    rows = {one.name: _rows(one) for one in TABLES}
    arguments: Any = (PLANS[plan], "sgd", {}, batches, TABLES, rows)
    results = ranks.succeed(ranks.run(training.train_sequences, 2, tmp_path, *arguments))
    alone = models.unsharded_sequences(TABLES, training.optimizers()["sgd"], "fp32")
    for name, values in rows.items():
        alone.tables.set_rows(name, np.arange(len(values)), values)
    for step, one in enumerate(batches):
        outputs = alone(one.jagged())
        expected = {name: one.values().detach().clone() for name, one in outputs.items()}
        found = models.whole([outputs[step] for outputs, _ in results])
        assert set(found) == set(expected)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)
        models.squared_sequences(outputs, 0.5).backward()
    for table in TABLES:
        values = models.values_of([own for _, own in results], table.name, table.rows, table.dim)
        expected = alone.tables.rows(table.name, np.arange(table.rows))
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
        assert (values != rows[table.name]).any()


def _rows(table: Table) -> Any:
    generator = np.random.default_rng(table.rows)
    return generator.uniform(-1, 1, (table.rows, table.dim)).astype(np.float32)


@pytest.mark.parametrize("plan", ["tables", "rows"])
def test_int4_has_the_bytes_of_one_process(plan: str, tmp_path: Path) -> None:
    batches = [models.batch(seed, 8, TABLES) for seed in range(4)]
    arguments = PLANS[plan], "adagrad", {"precision": "int4"}, batches, TABLES
    results = ranks.succeed(ranks.run(training.train_sequences, 2, tmp_path, *arguments))
    alone = models.unsharded_sequences(TABLES, training.optimizers()["adagrad"], "int4")
    for one in batches:
        models.squared_sequences(alone(one.jagged()), 0.5).backward()
    for table in TABLES:
        own = models.joined([held for _, held in results], table.name)
        assert models.same_bytes(own, models.held(table.name, alone.tables, table.name))
