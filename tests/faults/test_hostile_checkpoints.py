"""Checkpoints whose arrays were made to do harm, with right checksums: refused by both readers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    PRECISIONS,
    SETS,
    WAYS,
    CheckpointFile,
    refused_by_cpp,
    refused_by_python,
    set_of,
    written,
)

import mpembed as mpe

TAGS, CACHE_ROWS = "cache.6.rowwise_adam.tags", "cache.6.rowwise_adam.rows"
DIRTY, EMPTY = np.uint64(1 << 63), np.uint64(2**48 - 1)


def test_what_is_put_together_again_is_the_same(
    parts: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    """So what the others refuse is refused for the change alone."""
    path = written(tmp_path / "file", parts.content())
    assert reader(path) is None
    again = CheckpointFile.of(mpe.EmbeddingBagCollection.load(path), tmp_path / "again")
    assert again.content() == path.read_bytes()


def used(tags: Any) -> tuple[int, int]:
    """Return the first slot that is not empty."""
    place = np.argwhere(tags != EMPTY)[0]
    return int(place[0]), int(place[1])


def same_row_everywhere(tags: Any) -> None:
    tags[...] = np.uint64(7) | DIRTY


def row_twice_in_its_set(tags: Any) -> None:
    place, way = used(tags)
    tags[place, (way + 1) % WAYS] = tags[place, way]


def row_in_another_set(tags: Any) -> None:
    tags[...] = EMPTY
    tags[(set_of(7, SETS) + 1) % SETS, 0] = 7


def row_of_no_table(tags: Any) -> None:
    tags[...] = EMPTY
    tags[set_of(10_000, SETS), 0] = 10_000


def pin(tags: Any) -> None:
    tags[used(tags)] |= np.uint64(1 << 56)


def bit_without_meaning(tags: Any) -> None:
    tags[used(tags)] |= np.uint64(1 << 50)


def dirty_and_empty(tags: Any) -> None:
    tags[used(tags)] = EMPTY | DIRTY


@pytest.mark.parametrize(
    "damage",
    [
        same_row_everywhere,
        row_twice_in_its_set,
        row_in_another_set,
        row_of_no_table,
        pin,
        bit_without_meaning,
        dirty_and_empty,
    ],
)
def test_tags(
    parts: CheckpointFile, tmp_path: Path, reader: Any, damage: Callable[[Any], None]
) -> None:
    damage(parts.arrays[TAGS])
    assert "cache tags are damaged" in reader(written(tmp_path / "file", parts.content()))


def test_a_row_alone_in_its_set_is_no_damage(
    parts: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    parts.arrays[TAGS][...] = EMPTY
    parts.arrays[TAGS][set_of(7, SETS), 3] = np.uint64(7) | DIRTY
    assert reader(written(tmp_path / "file", parts.content())) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_cached_rows_are_finite(
    parts: CheckpointFile, tmp_path: Path, reader: Any, value: float
) -> None:
    parts.arrays[CACHE_ROWS][1, 2, 3] = value
    found = reader(written(tmp_path / "file", parts.content()))
    assert CACHE_ROWS in found
    assert "not finite" in found
    if reader is refused_by_python:
        assert f"slot {WAYS + 2} is not finite" in found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cached_rows_fit_into_their_table(
    parts: CheckpointFile, tmp_path: Path, reader: Any, precision: str
) -> None:
    """A value for FP32 alone is damage in every row but an FP32 table's."""
    row = 20 * PRECISIONS.index(precision) + 3
    parts.arrays[TAGS][...] = EMPTY
    for other in range(0, 20 * len(PRECISIONS), 20):  # of each table, in the last ways
        place = set_of(other + 1, SETS)
        way = np.flatnonzero(parts.arrays[TAGS][place] == EMPTY)[-1]
        parts.arrays[TAGS][place, way] = other + 1
    place = set_of(row, SETS)
    parts.arrays[TAGS][place, 0] = row
    parts.arrays[CACHE_ROWS][place, 0, 0] = 3.4e38
    found = reader(written(tmp_path / "file", parts.content()))
    if found is None:
        assert precision == "fp32"
    else:
        assert CACHE_ROWS in found
        if reader is refused_by_python:
            assert f"slot {WAYS * place}, which holds row 3 of table 't.{precision}'" in found
        assert f"exceeds the range of {precision}" in found


def test_cached_rows_are_checked_by_the_tags_also_where_those_are_read_later(
    parts: CheckpointFile, tmp_path: Path
) -> None:
    """In C++, whose callers choose the order; Python reads the tags first."""
    path = written(tmp_path / "file", parts.content())
    assert refused_by_cpp(path, [CACHE_ROWS, TAGS, CACHE_ROWS]) is None
    row = 20 * PRECISIONS.index("fp16") + 3
    parts.arrays[TAGS][...] = EMPTY
    parts.arrays[TAGS][set_of(row, SETS), 0] = row
    parts.arrays[CACHE_ROWS][set_of(row, SETS), 0, 0] = 1e30
    written(path, parts.content())
    assert "exceeds the range of fp16" in str(refused_by_cpp(path, [CACHE_ROWS]))
    parts.arrays[TAGS][...] = 7
    written(path, parts.content())
    assert "cache tags are damaged" in str(refused_by_cpp(path, [CACHE_ROWS]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_tables_are_finite(
    parts: CheckpointFile, tmp_path: Path, reader: Any, precision: str
) -> None:
    """Of integer formats the scale and the bias alone can be something else."""
    name = f"table.t.{precision}.rows"
    infinity = 0x7F80 if precision in ("fp32", "bf16", "int8") else 0x7C00  # its upper half
    parts.arrays[name][17, -2:] = np.array([infinity], np.uint16).view(np.uint8)
    found = reader(written(tmp_path / "file", parts.content()))
    assert name in found
    assert "not finite" in found


@pytest.mark.parametrize(
    ("name", "bits"), [("exp_avg", 0x7FC0), ("exp_avg_sq", np.float32(np.nan).view(np.uint32))]
)
def test_states_are_finite(parts: CheckpointFile, tmp_path: Path, name: str, bits: Any) -> None:
    states = parts.arrays[f"table.t.int4.{name}"]
    words = states.view(f"u{states.dtype.itemsize}").reshape(-1)
    words[-1] = bits
    found = refused_by_python(written(tmp_path / "file", parts.content()))
    assert found is not None
    assert f"table.t.int4.{name}" in found


def test_states_of_cached_rows_are_finite(parts: CheckpointFile, tmp_path: Path) -> None:
    name = "cache.6.rowwise_adam.values"
    parts.arrays[name][0, 0, 0] = np.nan
    assert name in str(refused_by_python(written(tmp_path / "file", parts.content())))


def test_counts(parts: CheckpointFile, tmp_path: Path, reader: Any) -> None:
    parts.arrays["cache.6.rowwise_adam.meta"][0, 0] = 256
    assert "above 255" in reader(written(tmp_path / "file", parts.content()))


def test_samples_and_statistics(original: CheckpointFile, tmp_path: Path, reader: Any) -> None:
    for name, value in (
        ("cache.6.rowwise_adam.counters", 2**63),
        ("cache.6.rowwise_adam.counters", 16 * SETS * WAYS),
        ("stats", -1),
    ):
        parts = copy.deepcopy(original)
        parts.arrays[name].reshape(-1)[-1] = value
        assert name in reader(written(tmp_path / "file", parts.content()))
    parts.arrays["stats"] = original.arrays["stats"]
    parts.arrays["cache.6.rowwise_adam.counters"][1] = 16 * SETS * WAYS - 1
    assert reader(written(tmp_path / "file", parts.content())) is None


def test_samples_of_a_cache_that_counts_none(tmp_path: Path, reader: Any) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 20, 4)],
        cache=mpe.CacheConfig(num_sets=1, ways=8),
        optimizer=mpe.SGD(),
    )
    parts = CheckpointFile.of(emb, tmp_path / "file")
    parts.arrays["cache.4.sgd.counters"][1] = 1
    assert "cache.4.sgd.counters" in reader(written(tmp_path / "file", parts.content()))


@pytest.mark.parametrize(
    "name",
    [
        "stats",
        "noise",
        "table.frozen.rows",
        "table.t.int4.exp_avg",
        "cache.6.rowwise_adam.values",
        "cache.6.rowwise_adam.sketch",
        "cache.6.rowwise_adam.counters",
    ],
)
def test_arrays_that_are_missing_or_of_another_shape(
    original: CheckpointFile, tmp_path: Path, reader: Any, name: str
) -> None:
    for change in (None, np.zeros(3, original.arrays[name].dtype)):
        parts = copy.deepcopy(original)
        if change is None:
            del parts.arrays[name]
        else:
            parts.arrays[name] = change
        found = reader(written(tmp_path / "file", parts.content()))
        assert f"manifest is not valid: {name}" in found


@pytest.mark.parametrize(
    "name",
    ["more", "table.frozen.exp_avg", "table.t.int4.sum", "cache.6.frozen.tags", "table.none.rows"],
)
def test_an_array_that_nobody_owns(
    parts: CheckpointFile, tmp_path: Path, reader: Any, name: str
) -> None:
    parts.arrays[name] = np.zeros(4, np.int64)
    found = reader(written(tmp_path / "file", parts.content()))
    assert name in found
    assert "too many" in found


def test_only_the_sums_of_version_2_are_missing(
    parts: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    path = tmp_path / "file"
    parts.manifest["version"] = 2
    assert "too many" in reader(written(path, parts.content()))
    del parts.arrays["noise"]
    assert reader(written(path, parts.content())) is None
    del parts.arrays["stats"]
    assert "stats" in reader(written(path, parts.content()))
