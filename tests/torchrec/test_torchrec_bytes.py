"""Sharded collections against one process: the bytes of rows, states and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import ranks
import sharded_models as models
import sharded_training as training
import torch

import mpembed as mpe
from mpembed.torch.torchrec import TableSettings
from mpembed.torch.torchrec._settings import module_seed

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_table_wise_int4_has_the_bytes_of_one_process(
    world_size: int, optimizer: str, tmp_path: Path
) -> None:
    batches = [models.batch(seed, 8) for seed in range(4)]
    plan = models.table_wise(world_size)
    options: dict[str, Any] = {"precision": "int4"}
    results = ranks.succeed(
        ranks.run(training.train, world_size, tmp_path, plan, optimizer, options, batches)
    )
    alone = models.unsharded(models.TABLES, training.optimizers()[optimizer], "int4")
    outputs = models.train_alone(alone, batches, 1 / world_size)
    for step, expected in enumerate(outputs):
        found = models.whole([outputs[step] for outputs, _ in results])
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], one) for name, one in expected.items())
    for one in models.TABLES:
        own = models.joined([held for _, held in results], one.name)
        assert models.same_bytes(own, models.held(one.name, alone.tables, one.name))


def run(folder: Path, plan: dict[str, Any], options: dict[str, Any], longest: int = 3) -> Any:
    """Train on two ranks; return the results of each."""
    batches = [models.batch(seed, 16, longest=longest) for seed in range(5)]
    arguments = plan, "adagrad", options, batches
    return ranks.succeed(ranks.run(training.train, 2, folder, *arguments))


MIXED = {"t0": ("rw", {}), "t1": ("tw", {"rank": 1}), "t2": ("cw", {"ranks": [0, 1]})}


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_with_caches_each_run_of_a_plan_has_the_same_bytes(precision: str, tmp_path: Path) -> None:
    cache = mpe.CacheConfig(num_sets=1, ways=8, policy="lfu")
    options = {"precision": precision, "cache": cache}
    one, other = run(tmp_path, MIXED, options), run(tmp_path, MIXED, options)
    for (outputs, held), (expected, same) in zip(one, other, strict=True):
        for step, found in enumerate(outputs):
            assert all(torch.equal(found[name], expected[step][name]) for name in found)
        assert all(models.same_bytes(a, b) for a, b in zip(held, same, strict=True))
    other_seed = run(tmp_path, MIXED, {**options, "seed": 1})
    assert not models.same_bytes(one[0][1][0], other_seed[0][1][0])


def test_settings_of_a_table_are_its_own(tmp_path: Path) -> None:
    tables = {
        "t0": TableSettings(precision="int4", lr=0.5),
        "t1": TableSettings(trainable=False, init=("uniform", -2.0, 2.0)),
        "t2": TableSettings(precision="int2", optimizer=mpe.Adam(lr=0.02)),
    }
    results = run(tmp_path, models.row_wise(), {"precision": "int8", "tables": tables})
    configs = [
        mpe.TableConfig("t0", 100, 8, "int4", lr=0.5),
        mpe.TableConfig("t1", 50, 8, "int8", trainable=False, init=("uniform", -2.0, 2.0)),
        mpe.TableConfig("t2", 7, 12, "int2", optimizer=mpe.Adam(lr=0.02)),
    ]
    start = mpe.EmbeddingBagCollection(configs, optimizer=mpe.RowwiseAdagrad(lr=0.1))
    for one in models.TABLES:
        own = models.joined([held for _, held in results], one.name)
        first = models.held(one.name, start, one.name)
        assert own.packed.shape == first.packed.shape
        assert set(own.states) == set(first.states)
        # The frozen table has the whole table's initial rows, on both ranks; the others trained.
        assert models.same_bytes(own, first) == (one.name == "t1")


def test_rows_of_one_in_int4_have_nearly_the_outputs_of_one_process(tmp_path: Path) -> None:
    results = run(tmp_path, models.row_wise(), {"precision": "int4"}, longest=1)
    batches = [models.batch(seed, 16, longest=1) for seed in range(5)]
    alone = models.unsharded(models.TABLES, training.optimizers()["adagrad"], "int4")
    outputs = models.train_alone(alone, batches, 0.5)
    for step, expected in enumerate(outputs):
        found = models.whole([outputs[step] for outputs, _ in results])
        # A bag of one row is exact: TorchRec adds zeros to it. The row's gradients are, too.
        assert all(torch.equal(found[name], one) for name, one in expected.items())
    for one in models.TABLES:
        own = models.joined([held for _, held in results], one.name)
        assert models.same_bytes(own, models.held(one.name, alone.tables, one.name))


def test_evaluation_changes_nothing(tmp_path: Path) -> None:
    cache = mpe.CacheConfig(num_sets=1, ways=8, policy="lfu")
    batches = [models.batch(seed, 16) for seed in range(3)]
    arguments: Any = (MIXED, {"precision": "int4", "cache": cache}, batches)
    for same, outputs, trained in ranks.succeed(
        ranks.run(training.evaluate, 2, tmp_path, *arguments)
    ):
        assert same
        assert all(torch.equal(outputs[0][name], one) for name, one in trained[0].items())


def test_collections_of_one_model_have_random_bits_of_their_own() -> None:
    assert module_seed(7, "") == 7
    found = {module_seed(seed, path) for seed in (0, 1) for path in ("", "users", "items.tables")}
    assert len(found) == 6
    assert all(0 <= seed < 2**64 for seed in found)
