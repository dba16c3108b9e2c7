"""Loads with other settings that are refused, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_loads import DIM, load, make, saved

import mpembed as mpe


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": "int3"}, ValueError, "precision must be one of 'fp32'"),
        ({"precision": {"a": "int3"}}, ValueError, r"precision\['a'\] must be one of"),
        ({"precision": {"c": "int8"}}, ValueError, r"precision: no table 'c' in .* \['a', 'b'\]"),
        ({"num_embeddings": {"c": 9}}, ValueError, "num_embeddings: no table 'c'"),
        ({"num_embeddings": {"a": -1}}, ValueError, r"num_embeddings\['a'\] must be in 0"),
        ({"num_embeddings": {"a": 1.5}}, TypeError, r"num_embeddings\['a'\] must be an integer"),
        ({"num_embeddings": 99}, TypeError, "must be a dict of table name -> rows, got 99"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be an mpembed optimizer or a dict"),
        ({"optimizer": {"a": 0.1}}, TypeError, r"optimizer\['a'\] must be an mpembed optimizer"),
        ({"optimizer": {"z": mpe.SGD(0.1)}}, ValueError, "optimizer: no table 'z'"),
        ({"cache": 0.1}, TypeError, "cache must be a CacheConfig or None, got 0.1"),
        ({"rounding": "up"}, ValueError, "rounding must be one of"),
        ({"bounds": "clip"}, ValueError, "bounds must be one of"),
        ({"on_nonfinite": "zero"}, ValueError, "on_nonfinite must be one of"),
    ],
)
def test_wrong_settings_are_refused_before_arrays_are_read(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = saved(make(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # its arrays are damaged
    with pytest.raises(error, match=message):
        load(path, **changes)
    with pytest.raises(ValueError, match="checksum"):
        load(path, num_embeddings={"a": 41})


def test_optimizers_that_no_table_can_use_are_refused(tmp_path: Path) -> None:
    own = mpe.TableConfig("own", 9, 4, optimizer=mpe.SGD(0.1))
    frozen = mpe.TableConfig("frozen", 9, 4, trainable=False)
    mpe.EmbeddingBagCollection([own, frozen]).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="every table .* pass a dict of table name -> optimizer"):
        load(tmp_path / "saved", optimizer=mpe.Adam(0.1))
    with pytest.raises(ValueError, match="table 'frozen' is frozen"):
        load(tmp_path / "saved", optimizer={"frozen": mpe.Adam(0.1)})


@pytest.mark.parametrize("cached", [False, True])
def test_rows_beyond_the_range_of_a_format_are_named(cached: bool, tmp_path: Path) -> None:
    emb = make()
    if cached:
        emb.forward(np.full(2, 3), np.array([0, 1, 2]))
    emb.set_rows("b", np.array([3]), np.full((1, DIM), 1e9, np.float32))
    emb.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"table 'b': row 3 .* range of fp16; load the table with"):
        load(tmp_path / "saved", precision="fp16")
    load(tmp_path / "saved", precision={"a": "fp16", "b": "bf16"})


def test_damaged_caches_are_refused_whatever_they_become(tmp_path: Path) -> None:
    from on_device import poke

    emb = make()
    saved(emb, tmp_path)
    label = f"cache.{DIM}.adam"
    tags, rows = (np.array(emb.state_arrays()[f"{label}.{one}"]) for one in ("tags", "rows"))
    used = np.flatnonzero(tags.reshape(-1) != mpe._bindings.contract.EMPTY_TAG)
    twice, away, infinite = tags.copy(), tags.copy(), rows.copy()
    twice.reshape(-1)[used[0]] = tags.reshape(-1)[used[1]]
    away.reshape(-1)[used[0]] = 130
    infinite.reshape(-1, rows.shape[-1])[used[0], 0] = np.inf
    for name, bad in (("tags", twice), ("tags", away), ("rows", infinite)):
        poke(emb, f"{label}.{name}", bad)
        emb.save(tmp_path / "bad")
        poke(emb, f"{label}.tags", tags)
        poke(emb, f"{label}.rows", rows)
        for changes in ({"cache": None}, {"precision": "int8"}, {"num_embeddings": {"a": 99}}):
            with pytest.raises(ValueError, match=rf"bad: cache\S*{name}.*(damaged|not finite)"):
                load(tmp_path / "bad", **changes)
