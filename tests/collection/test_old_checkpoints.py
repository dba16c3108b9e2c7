"""Checkpoints that earlier layouts of the file were written in, by the code of their time."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import OLD, rewritten
from reference.pair import assert_same
from safetensors.numpy import load_file

import mpembed as mpe
from mpembed._checkpoint.manifest import VERSION
from mpembed._checkpoint.versions import OLDEST

load = mpe.EmbeddingBagCollection.load
#: Of version 1: the group of the caches today, and what the code of then made of `batch`.
FIRST = {
    "sgd": ("", "3933baa89b2c7979"),
    "adagrad": ("adagrad.l2", "270ef2cbdb97cfbd"),
    "rowwise_adagrad": ("rowwise_adagrad", "a409ee9b4514e63c"),
}


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    ids = np.concatenate([rng.integers(0, rows, 8) for rows in (12, 20, 9)])
    return ids, np.arange(0, 25, 2)


def outputs(emb: mpe.EmbeddingBagCollection) -> str:
    out = emb.forward(*batch(), training=False)
    return hashlib.sha256(out.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FIRST)
def test_version_1_loads_with_every_byte_that_it_has(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = OLD / f"{name}.1.safetensors"
    label, expected = FIRST[name]
    with caplog.at_level(logging.INFO, "mpembed"):
        emb = load(path)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    arrays, file = emb.state_arrays(), load_file(path)
    for key, values in file.items():
        parts = key.replace(".state", ".sum").split(".")
        if parts[0] == "cache":
            parts.insert(2, label)
        now = arrays[".".join(parts)]
        assert_same(now[..., : values.shape[-1]] if key.endswith("rows") else now, values, key)
    assert outputs(emb) == expected
    assert (emb.step, emb.updates, emb.optimizer.lr) == (8, 0, 0.1 / 5)
    emb.save(tmp_path / "now")
    assert_same(load(tmp_path / "now").state_arrays(), arrays, "saved again")


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad"])
def test_slots_get_the_states_that_version_1_kept_in_tables(name: str) -> None:
    emb = load(OLD / f"{name}.1.safetensors")
    before = {table.name: read(emb, table.name) for table in emb.tables}
    emb.flush()
    for table in emb.tables:
        ids = np.arange(table.num_embeddings)
        assert_same(read(emb, table.name), before[table.name], table.name)
        stored = emb.state_arrays()[f"table.{table.name}.sum"]
        held = stored if stored.dtype == np.float32 else stored.astype(np.uint32) << 16
        assert_same(held.view(np.float32), emb.state(table.name, ids)["sum"], "in the table")


def read(emb: mpe.EmbeddingBagCollection, name: str) -> Any:
    count = next(table.num_embeddings for table in emb.tables if table.name == name)
    return emb.state(name, np.arange(count))["sum"]


@pytest.mark.parametrize("name", FIRST)
def test_version_1_loads_with_changes_and_trains(name: str) -> None:
    path = OLD / f"{name}.1.safetensors"
    emb, now = load(path), load(path, precision="fp32", cache=None, num_embeddings={"a": 50})
    for table in emb.tables:
        ids = np.arange(table.num_embeddings)
        assert_same(now.rows(table.name, ids), emb.rows(table.name, ids), table.name)
        assert_same(now.state(table.name, ids), emb.state(table.name, ids), table.name)
    out = now.forward(*batch())
    now.backward(np.ones_like(out))
    assert now.updates == 1


def test_version_2_trains_on_with_the_bytes_of_its_time() -> None:
    """It lacks nothing but the measurements of rounding; LFU counts otherwise than then."""
    path = OLD / "adam.2.safetensors"
    emb = load(path)
    assert emb.load_report is not None
    assert emb.load_report.converted == ["the layout of version 2"]
    assert emb.load_report.started == emb.load_report.dropped == []
    emb = load(path, cache=mpe.CacheConfig(num_sets=1, ways=8, policy="lru"))
    assert {name: one and one.lr for name, one in emb.optimizers.items()} == {
        "a": 0.1 / 5,
        "b": 0.2,
        "c": 0.3,
        "d": None,
    }
    for step in range(4, 6):
        rng = np.random.default_rng(step)
        ids = np.concatenate([rng.integers(0, rows, 8) for rows in (12, 20, 9, 5)])
        out = emb.forward(ids, np.arange(0, 33, 2))
        grad = np.random.default_rng(step).standard_normal(out.shape)
        emb.backward(grad.astype(np.float32))
    hashed = hashlib.sha256()
    for name, array in sorted(emb.state_arrays().items()):
        if name != "noise":
            hashed.update(name.encode() + np.ascontiguousarray(array).tobytes())
    assert hashed.hexdigest()[:16] == "f44146f752708b68"  # what the code of then had


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("table.a.state"), "table.a.state is missing"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "an array 'more' too many"),
        (lambda arrays: arrays.pop("cache.6.tags"), "cache.6.tags is missing"),
        (lambda arrays: arrays["cache.6.tags"].fill(3), "cache tags are damaged"),
    ],
)
def test_damaged_files_of_version_1_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = rewritten(
        OLD / "rowwise_adagrad.1.safetensors", tmp_path / "bad", lambda _, a: change(a)
    )
    with pytest.raises(ValueError, match=f"bad: .*{message}"):
        load(path)


@pytest.mark.parametrize("version", [OLDEST - 1, VERSION + 1, None, "3", [3]])
def test_unknown_versions_are_refused(version: Any, tmp_path: Path) -> None:
    path = rewritten(
        OLD / "sgd.1.safetensors",
        tmp_path / "file",
        lambda manifest, _: manifest.update(version=version),
    )
    message = rf"version .*; this mpembed reads {OLDEST} to {VERSION}"
    with pytest.raises(ValueError, match=message):
        load(path)
    shutil.copy(OLD / "sgd.1.safetensors", path)
    load(path)
