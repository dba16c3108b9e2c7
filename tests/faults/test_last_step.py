"""Files at the last write step: loaded where nothing is written, refused by name elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import OLD, CheckpointFile, refused_by_python, written

import mpembed as mpe
from mpembed._bindings.contract import MAX_STEP

NAMES = ["adam.2.safetensors", "adagrad.1.safetensors"]


def at_step(name: str, step: int, path: Path) -> Path:
    parts = CheckpointFile((OLD / name).read_bytes())
    parts.manifest["step"] = step
    return written(path, parts.content())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *[(name, {}) for name in NAMES],
        *[(name, {"rounding": "nearest", "bounds": "raise"}) for name in NAMES],
        (NAMES[0], {"num_embeddings": {"a": 30}}),  # its cache keeps its sets
    ],
)
def test_what_writes_nothing_takes_no_step(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = at_step(name, MAX_STEP, tmp_path / "file")
    emb = mpe.EmbeddingBagCollection.load(path, **changes)
    assert emb.step == MAX_STEP
    emb.save(tmp_path / "again")
    assert mpe.EmbeddingBagCollection.load(tmp_path / "again").step == MAX_STEP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{"precision": "fp16"}, {"cache": None}])
def test_what_writes_needs_a_step(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    error = refused_by_python(at_step(name, MAX_STEP, tmp_path / "file"), **changes)
    assert error is not None
    assert error.startswith("FILE: cannot be loaded with changes that write rows or states")
    assert f"step may not exceed {MAX_STEP}" in error
    emb = mpe.EmbeddingBagCollection.load(at_step(name, MAX_STEP - 1, tmp_path / "file"), **changes)
    assert emb.step == MAX_STEP
