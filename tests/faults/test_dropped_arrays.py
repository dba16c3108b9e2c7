"""Arrays that a load does not keep are checked like the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import OLD, CheckpointFile, parsed, refused_by_python, written

import mpembed as mpe

LRU = mpe.CacheConfig(num_sets=2, ways=8, policy="lru")
CHANGES: list[dict[str, Any]] = [
    {},
    {"cache": None},
    {"cache": LRU},
    {"optimizer": mpe.SGD(0.1)},
    {"optimizer": mpe.SGD(0.1), "cache": None},
    {"precision": "int4", "rounding": "nearest"},
    {"num_embeddings": {"a": 0, "b": 0}},
]


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of today, with a cache that counts."""
    tables = [mpe.TableConfig("a", 30, 4, "int8"), mpe.TableConfig("b", 30, 4, "fp16")]
    cache = mpe.CacheConfig(num_sets=2, ways=8, policy="lfu")
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adam(0.1))
    for _ in range(4):
        out = emb.forward(np.arange(16), np.arange(0, 17, 2))
        emb.backward(np.ones_like(out))
    path = tmp_path_factory.mktemp("dropped") / "file"
    emb.save(path)
    return path.read_bytes()


def begins(file: bytes) -> dict[str, int]:
    """Return where the bytes of each array begin."""
    entries, data = parsed(file)
    del entries["__metadata__"]
    begin = len(file) - len(data)
    return {name: begin + entry["data_offsets"][0] for name, entry in entries.items()}


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes) or "none")
@pytest.mark.parametrize("name", ["today", "adam.2.safetensors", "rowwise_adagrad.1.safetensors"])
def test_every_array_has_its_checksum(
    name: str, changes: dict[str, Any], today: bytes, tmp_path: Path
) -> None:
    good = today if name == "today" else (OLD / name).read_bytes()
    assert refused_by_python(written(tmp_path / "file", good), **changes) is None
    for array, begin in begins(good).items():
        bad = bytearray(good)
        bad[begin] ^= 1
        error = refused_by_python(written(tmp_path / "file", bytes(bad)), **changes)
        assert error == f"FILE: {array} is damaged (checksum)"


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes) or "none")
def test_every_state_is_finite(changes: dict[str, Any], today: bytes, tmp_path: Path) -> None:
    for array in [name for name in begins(today) if "exp_avg" in name]:
        parts = CheckpointFile(today)
        parts.arrays[array][-1] = np.nan
        error = refused_by_python(written(tmp_path / "file", parts.content()), **changes)
        assert error is not None
        assert f"{array}: row 29 is not finite" in error
