"""Saved models that are damaged, or made to do harm, are refused; nothing else happens."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import mpembed as mpe
from mpembed.train.array_file import Arrays, DamagedError, header_digest, read_arrays, write_arrays
from mpembed.train.data.clicks import MISSING_CAT, MISSING_INT, Bags, Clicks, Columns
from mpembed.train.data.encoding import Block
from mpembed.train.forward import Forward
from mpembed.train.keeper import Keeper
from mpembed.train.model import Perceptrons, mlp_optimizer
from mpembed.train.runner import open_dataset, run, versions
from mpembed.train.save_folder import MANIFEST, SaveFolder, read_manifest, sealed
from mpembed.train.saved_model import SavedModel
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.trial_state import restore

pytestmark = pytest.mark.torch
ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 10**400, 1.5, -0.5, "", "x", "../x", [], {}, [0]]
FILES = [MANIFEST, "tables-a.safetensors", "dense-a.safetensors", "encoding-a.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "model"
    chosen = TrainOptions((Setting("int4", 0.05),), rows=120, dim=2, threads=1, batch_size=50)
    dataset, folder = open_dataset(chosen, digested=True), SaveFolder(path)
    folder.open()
    keeper = Keeper(folder, chosen, dataset, versions())
    run(chosen, dataset, lambda trial, rows: None, keeper=keeper)
    keeper.save()
    folder.close()
    assert sorted(one.name for one in path.iterdir()) == sorted(FILES)
    use(path)
    return path


def use(path: Path) -> None:
    """Read all of a model, and use it as `score` and `--resume` do."""
    model = SavedModel(path)
    encoding, arrays = model.encoding(), model.arrays()
    tables = model.tables(encoding)
    try:
        forward = Forward(arrays, tables, encoding.columns)
        net = Perceptrons(model.facts.options.dim, 0, encoding.columns)
        optimizer = mlp_optimizer(net, model.facts.options)
        records = restore(arrays, net, optimizer, model.facts.steps)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    records.curve()
    width = max(len(encoding.columns.dense), 1)
    encoding.encode("score", clicks_for(encoding.columns))
    ids = np.array([[rows - 1] for rows in encoding.table_rows], np.int32)
    batch = Block("score", np.zeros(1, np.float32), np.zeros((1, width), np.float32), ids)
    assert np.isfinite(forward(batch)).all()


def clicks_for(columns: Columns) -> Clicks:
    """Return three clicks of any columns."""
    keys = np.array([MISSING_CAT, 0, 5], np.int64)
    cats: Any = np.array([keys] * len(columns.categorical))
    if columns.bags:
        cats = tuple(Bags(keys, np.arange(4, dtype=np.int64)) for _ in columns.categorical)
    dense = np.array([[MISSING_INT, 0, 5]] * len(columns.dense), np.int64).reshape(-1, 3)
    return Clicks(np.zeros(3, np.int64), dense, cats)


def copy(saved: Path, folder: Path) -> Path:
    return Path(shutil.copytree(saved, folder / "model"))


def used_or_refused(path: Path) -> bool:
    """Return whether a model can be used; anything but a refusal is raised."""
    try:
        use(path)
    except DamagedError as error:
        assert str(path) in str(error) or "net." in str(error) or "optimizer." in str(error)
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    path, rng = copy(saved, tmp_path), random.Random(name)
    whole = (saved / name).read_bytes()
    for _ in range(6):
        changed = bytearray(whole)
        at = rng.randrange(len(whole))
        changed[at] ^= 1 << rng.randrange(8)
        (path / name).write_bytes(changed)
        assert not used_or_refused(path), at
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        (path / name).write_bytes(whole[:length])
        assert not used_or_refused(path), length
    (path / name).write_bytes(whole + b"\0")
    assert not used_or_refused(path)
    (path / name).unlink()
    assert not used_or_refused(path)
    (path / name).mkdir()
    assert not used_or_refused(path)
    (path / name).rmdir()
    (path / name).write_bytes(whole)
    use(path)


def places(found: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value of a JSON text."""
    items: list[tuple[Any, Any]] = []
    if isinstance(found, dict):
        items = list(found.items())
    elif isinstance(found, list):
        items = list(enumerate(found[:2]))
    return [way for key, one in items for way in ((*at, key), *places(one, (*at, key)))]


def changed_manifests(saved: Path, path: Path, count: int) -> None:
    """Change one value of the manifest at a time, with a checksum that is right again."""
    whole, rng = read_manifest(saved), random.Random(count)
    ways = places(whole)
    for _ in range(count):
        manifest = json.loads(json.dumps(whole))
        *way, last = rng.choice(ways)
        holder = manifest
        for key in way:
            holder = holder[key]
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = rng.choice(ODD)
        (path / MANIFEST).write_bytes(sealed(manifest))
        used_or_refused(path)


def test_other_manifests_are_used_or_refused(saved: Path, tmp_path: Path) -> None:
    changed_manifests(saved, copy(saved, tmp_path), 40)


@pytest.mark.exhaustive
def test_many_other_manifests_are_used_or_refused(saved: Path, tmp_path: Path) -> None:
    changed_manifests(saved, copy(saved, tmp_path), 400)


def rewrite(path: Path, kind: str, change: Callable[[Arrays], None]) -> None:
    """Change the arrays of a file, with checksums and digests that are right again."""
    file = path / f"{kind}-a.safetensors"
    arrays = read_arrays(file)
    change(arrays)
    write_arrays(file, arrays)
    manifest = read_manifest(path)
    manifest["files"][kind][1] = header_digest(file)
    (path / MANIFEST).write_bytes(sealed(manifest))


def put(name: str, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: value(arrays[name])})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dense", lambda arrays: arrays.pop("net.top.0.bias"), r"net\.top\.0\."),
        ("dense", lambda arrays: arrays.update(more=np.zeros(2, np.float32)), "more is not exp"),
        ("dense", put("net.top.0.bias", lambda one: one[:-1]), r"net\.top\.0\."),
        ("dense", put("net.top.0.bias", lambda one: one.astype(np.float64)), r"net\.top\.0\."),
        ("dense", put("net.top.0.bias", lambda one: one * np.nan), "not finite"),
        ("dense", put("optimizer.0.exp_avg_sq", lambda one: one - 1.0), "below 0"),
        ("dense", put("records.losses", lambda one: one[:-1]), "records.losses"),
        ("dense", put("records.rows", lambda one: -one), "below 0"),
        ("encoding", put("values.0", lambda one: one[::-1].copy()), "vocabulary"),
        ("encoding", put("values.0", lambda one: one[:-1]), "vocabulary"),
        ("encoding", lambda arrays: arrays.pop("values.3"), "values.3"),
    ],
)
def test_other_arrays_are_refused(
    kind: str, change: Callable[[Arrays], None], message: str, saved: Path, tmp_path: Path
) -> None:
    path = copy(saved, tmp_path)
    rewrite(path, kind, change)
    with pytest.raises(DamagedError, match=message):
        use(path)


def change_rate(tables: mpe.EmbeddingBagCollection) -> None:
    tables.optimizer.lr = 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables.set_updates(99), "has made 99 updates, not the 3 of the run"),
        (change_rate, "its optimizer are not those of the run"),
    ],
)
def test_another_models_tables_are_refused(
    change: Callable[[mpe.EmbeddingBagCollection], None], message: str, saved: Path, tmp_path: Path
) -> None:
    path = copy(saved, tmp_path)
    model, manifest = SavedModel(path), read_manifest(path)
    tables = model.tables(model.encoding())
    change(tables)
    tables.save(path / "tables-a.safetensors")
    manifest["files"]["tables"][1] = header_digest(path / "tables-a.safetensors")
    (path / MANIFEST).write_bytes(sealed(manifest))
    with pytest.raises(DamagedError, match=message):
        use(path)
