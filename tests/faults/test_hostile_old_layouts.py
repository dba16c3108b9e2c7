"""Files of earlier layouts that their code did not write: refused by name, in linear time."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import OLD, CheckpointFile, refused_by_python, written

import mpembed as mpe
from mpembed._checkpoint.manifest import VERSION
from mpembed._checkpoint.versions import OLDEST


def of_version_1() -> CheckpointFile:
    return CheckpointFile((OLD / "adagrad.1.safetensors").read_bytes())


def of_version(version: int, original: CheckpointFile) -> CheckpointFile:
    """Return a file that says it has this layout, with the manifest that such a one has."""
    parts = of_version_1() if version == 1 else copy.deepcopy(original)
    parts.manifest["version"] = version
    return parts


@pytest.mark.exhaustive
@pytest.mark.parametrize("version", range(OLDEST, VERSION + 1))
def test_a_manifest_takes_linear_time(
    version: int, original: CheckpointFile, tmp_path: Path
) -> None:
    """Below the number of tables that a collection may have; nothing else refuses them early."""
    parts, count = of_version(version, original), 60_000
    table = {**parts.manifest["tables"][0], "num_embeddings": 0}
    parts.manifest["tables"] = [{**table, "name": f"t{number}"} for number in range(count)]
    if version > 1:
        label = parts.manifest["groups"][0]["label"]
        parts.manifest["groups"] = [{"label": label, "tables": [*range(count)], "cached": True}]
    path = written(tmp_path / "file", parts.content())
    begin = time.process_time()
    error = refused_by_python(path)
    assert error is not None
    assert "but the manifest says" in error
    assert time.process_time() - begin < 60  # about 2 alone; hours where it is quadratic


LATER = [
    *[("it", name, value) for name, value in [("groups", []), ("optimizers", []), ("updates", 0)]],
    *[("a table", name, None) for name in ("optimizer", "lr", "lr_now", "table_id", "total_rows")],
    ("a table", "trainable", False),
    ("a table", "trainable", True),
    ("a table", "first_row", 0),
]


@pytest.mark.parametrize(("what", "name", "value"), LATER)
def test_version_1_has_no_later_fields(what: str, name: str, value: Any, tmp_path: Path) -> None:
    parts = of_version_1()
    fields = parts.manifest if what == "it" else parts.manifest["tables"][1]
    assert name not in fields
    fields[name] = value
    error = refused_by_python(written(tmp_path / "file", parts.content()))
    assert error is not None
    assert f"{what} has an unknown {name!r}" in error


def test_every_field_of_a_manifest_is_of_version_1_or_later(original: CheckpointFile) -> None:
    parts = of_version_1()
    since = {name for what, name, _ in LATER if what == "it"}
    assert set(original.manifest) - set(parts.manifest) == since
    since = {name for what, name, _ in LATER if what == "a table"}
    assert set(original.manifest["tables"][0]) - set(parts.manifest["tables"][0]) == since


SEVERAL = [kind for kind, made in mpe.optim.OPTIMIZERS.items() if len(made(0.1).states) > 1]


@pytest.mark.parametrize("kind", SEVERAL)
def test_version_1_has_one_state_a_row(kind: str, tmp_path: Path) -> None:
    """Otherwise one array would be read as each of them."""
    parts = of_version_1()
    parts.manifest["optimizer"] = [kind, {"lr": 0.1}]
    for table in parts.manifest["tables"]:
        shape = table["num_embeddings"], table["embedding_dim"]
        parts.arrays[f"table.{table['name']}.state"] = np.zeros(shape, np.float32)
    error = refused_by_python(written(tmp_path / "file", parts.content()))
    assert error is not None
    assert f"optimizer {kind!r} keeps 2 states a row, but version 1 has one" in error
