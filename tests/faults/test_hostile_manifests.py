"""Manifests made to do harm, with right checksums: refused by name, or harmless."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    DIM,
    SETS,
    WAYS,
    CheckpointFile,
    nested,
    refused_by_cpp,
    refused_by_python,
    serve,
    set_of,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mpembed as mpe

ODD: list[Any] = [None, True, -1, 2**70, 1.5, "odd", [], {}, [[]], 0]


def test_fields_that_are_missing_or_unknown(
    original: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    path = tmp_path / "file"
    objects: dict[str, Callable[[Any], Any]] = {
        "it": lambda manifest: manifest,
        "a table": lambda manifest: manifest["tables"][2],
        "a group": lambda manifest: manifest["groups"][0],
        "the cache": lambda manifest: manifest["cache"],
    }
    for what, find in objects.items():
        for field in find(original.manifest):
            parts = copy.deepcopy(original)
            del find(parts.manifest)[field]
            text = json.dumps(
                parts.manifest if field == "crc32" and what == "it" else parts.whole_manifest()
            )
            assert reader(written(path, parts.content(text))), (what, field)
        parts = copy.deepcopy(original)
        find(parts.manifest)["more"] = None
        assert reader(written(path, parts.content())), what


def test_fields_of_optimizers(original: CheckpointFile, tmp_path: Path) -> None:
    _, settings = original.manifest["optimizers"][0]
    for field in [*settings, "more"]:
        parts = copy.deepcopy(original)
        changed = parts.manifest["optimizers"][0][1]
        if field in changed:
            del changed[field]
        else:
            changed[field] = None
        assert "manifest is not valid" in str(
            refused_by_python(written(tmp_path / "file", parts.content()))
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("placement", "host"),
        ("placement", "nowhere"),
        ("placement", None),
        ("optimizer", -1),
        ("optimizer", 1),
        ("optimizer", True),
        ("lr_now", 0.5),
        ("lr_now", []),
        ("lr", "odd"),
        ("trainable", 1),
        ("name", ""),
        ("total_rows", 19),
        ("total_rows", 20.0),
        ("table_id", 0),
        ("first_row", -1),
    ],
)
def test_fields_of_a_table_also_where_another_device_leaves_them_out(
    parts: CheckpointFile, tmp_path: Path, reader: Any, field: str, value: Any
) -> None:
    parts.manifest["tables"][1][field] = value
    found = reader(written(tmp_path / "file", parts.content()))
    assert "manifest is not valid" in str(found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("updates", -5),
        ("updates", 7),
        ("updates", 1.5),
        ("step", 2**40),
        ("optimizer", 99),
        ("optimizer", None),
        ("optimizers", [["sgd", {}]]),
        ("optimizers", None),
        ("on_nonfinite", 3),
        ("on_nonfinite", "drop"),
        ("bounds", "skip"),
        ("written_by", 1),
        ("seed", -1),
        ("groups", []),
        ("cache", {"load_factor": None, "num_sets": None, "policy": "lfu", "ways": WAYS}),
        ("cache", {"load_factor": 0.5, "num_sets": SETS, "policy": "lfu", "ways": WAYS}),
        ("cache", {"load_factor": None, "num_sets": SETS + 1, "policy": "lfu", "ways": WAYS}),
        ("cache", {"load_factor": None, "num_sets": SETS, "policy": "lfu", "ways": 4}),
        ("cache", {"load_factor": None, "num_sets": 2, "policy": "lfu", "ways": 16}),
    ],
)
def test_fields_of_the_manifest(
    parts: CheckpointFile, tmp_path: Path, reader: Any, field: str, value: Any
) -> None:
    """Each of its type and in its range; three updates took six steps."""
    parts.manifest[field] = value
    found = reader(written(tmp_path / "file", parts.content()))
    assert "manifest is not valid" in str(found)


@pytest.mark.parametrize(
    "value", ["cuda", "cuda:-1", "cuda:00", "tpu", "cuda:" + "9" * 30, 0, None]
)
def test_a_device_is_named_rightly_also_where_another_is_asked_for(
    parts: CheckpointFile, tmp_path: Path, reader: Any, value: Any
) -> None:
    parts.manifest["device"] = value
    found = reader(written(tmp_path / "file", parts.content()))
    assert "manifest is not valid: device is" in str(found)


def test_a_device_that_is_not_here(parts: CheckpointFile, tmp_path: Path) -> None:
    parts.manifest["device"] = "cuda:12345"
    path = written(tmp_path / "file", parts.content())
    with pytest.raises(RuntimeError, match="pass device="):
        mpe.EmbeddingBagCollection.load(path)
    assert refused_by_python(path) is None
    assert refused_by_cpp(path) is None


def test_groups_are_those_of_the_tables(
    original: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    for place, value in nested_changes(original.manifest["groups"]):
        parts = copy.deepcopy(original)
        put(parts.manifest["groups"], place, value)
        assert reader(written(tmp_path / "file", parts.content())), (place, value)


def test_a_label_is_that_of_the_group_also_where_the_arrays_have_it(
    parts: CheckpointFile, tmp_path: Path, reader: Any
) -> None:
    parts.manifest["groups"][0]["label"] = "x"
    parts.arrays = {
        name.replace(f"cache.{DIM}.rowwise_adam.", "cache.x."): array
        for name, array in parts.arrays.items()
    }
    found = reader(written(tmp_path / "file", parts.content()))
    assert "its groups are not those of its tables" in found


def test_groups_of_many_kinds(tmp_path: Path, reader: Any) -> None:
    """Labels with a mode of decay, states of every shape and type, caches by a share of rows."""
    optimizers = [
        mpe.SGD(),
        mpe.SGD(momentum=0.9, weight_decay=0.1, weight_decay_mode="l2"),
        mpe.Adagrad(),
        mpe.RowwiseAdagrad(state_precision="fp32"),
        mpe.Adam(weight_decay=0.1, weight_decay_mode="decoupled"),
        mpe.Adam(state_precision="bf16"),
        mpe.Lamb(),
        mpe.Ftrl(),
        None,
    ]
    tables = [
        mpe.TableConfig(f"{dim}.{n}", 5 * n, dim, "int4", optimizer=one, lr=None if n % 2 else 0.5)
        if one is not None
        else mpe.TableConfig(f"{dim}.{n}", 5 * n, dim, trainable=False)
        for dim in (8, 3)
        for n, one in enumerate(optimizers)
    ]
    for cache in (None, mpe.CacheConfig(load_factor=0.3), mpe.CacheConfig(num_sets=2, ways=8)):
        emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.RowwiseAdam())
        emb.save(tmp_path / "file")
        assert reader(tmp_path / "file") is None


def nested_changes(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every place inside a value, with odd values to put there."""
    return [(place, odd) for place in nested(value) for odd in ODD if not same(value, place, odd)]


def same(value: Any, place: tuple[Any, ...], odd: Any) -> bool:
    for key in place:
        value = value[key]
    return json.dumps(value) == json.dumps(odd)


def put(value: Any, place: tuple[Any, ...], new: Any) -> None:
    *above, last = place
    for key in above:
        value = value[key]
    value[last] = new


def test_every_value_of_the_manifest_may_be_odd(original: CheckpointFile, tmp_path: Path) -> None:
    """It is refused by name, or does no harm, such as another seed."""
    path, accepted, random_numbers = tmp_path / "file", 0, random.Random(0)
    manifest = original.whole_manifest()
    places = [p for p in nested(manifest) if p[:1] != ("tables",) or p[1:2] in ((0,), (5,))]
    for place in places:
        for odd in random_numbers.sample(ODD, 1 if place[:1] == ("crc32",) else 3):
            changed = copy.deepcopy(manifest)
            put(changed, place, odd)
            if refused_by_python(written(path, original.content(json.dumps(changed)))) is None:
                serve(path)
                accepted += 1
    assert 10 < accepted < 3 * len(places)


def test_both_readers_refuse_the_same(original: CheckpointFile, tmp_path: Path) -> None:
    """But for initial values and optimizers' settings, which C++ has no use for."""
    path, differ = tmp_path / "file", set()
    manifest = original.whole_manifest()
    places = [p for p in nested(manifest) if p[:1] != ("tables",) or p[1:2] in ((5,), (9,))]
    for place in places:
        for odd in ODD[:: 1 if place[:1] != ("crc32",) else len(ODD)]:
            changed = copy.deepcopy(manifest)
            put(changed, place, odd)
            written(path, original.content(json.dumps(changed)))
            if (refused_by_python(path) is None) != (refused_by_cpp(path) is None):
                assert refused_by_python(path), place
                differ.add(place[:4])
    settings_of_one = {("optimizers", 0, 1, name) for name in ("lr", "betas", "eps")}
    settings_of_one |= {("optimizers", 0, 1, name) for name in ("weight_decay", "state_precision")}
    assert differ == settings_of_one | {("tables", number, "init") for number in (5, 9)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "examples", [40, pytest.param(1000, marks=pytest.mark.exhaustive)], ids=["few", "many"]
)
def test_mutated_manifests(
    original: CheckpointFile, tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    """Whatever a manifest says, a file is refused by its name or does no harm, in both readers."""
    path = tmp_path_factory.mktemp("mutated") / "file"
    manifest = original.whole_manifest()
    places = nested(manifest)

    @settings(max_examples=examples)
    @given(st.lists(st.tuples(st.sampled_from(places), JSON), min_size=1, max_size=3))
    def mutate(changes: list[tuple[Any, Any]]) -> None:
        changed = copy.deepcopy(manifest)
        for place, new in changes:
            try:
                put(changed, place, new)
            except (TypeError, KeyError, IndexError):  # what was there has been replaced
                continue
        written(path, original.content(json.dumps(changed)))
        refused_by_cpp(path)
        if refused_by_python(path) is None:
            serve(path)

    mutate()


def on_a_device(parts: CheckpointFile) -> CheckpointFile:
    """Return what a device would save whose frozen table lies in the host's memory, with a cache.

    The CPU has no such cache: its arrays are left out there.
    """
    parts.manifest["device"] = "cuda:3"
    parts.manifest["tables"][-1]["placement"] = "host"
    parts.manifest["groups"][-1]["cached"] = True
    cache: dict[str, Any] = {
        "tags": np.full((SETS, WAYS), 2**48 - 1, np.uint64),
        "meta": np.zeros((SETS, WAYS), np.uint32),
        "rows": np.zeros((SETS, WAYS, DIM), np.float32),
        "counters": np.zeros(2, np.uint64),
        "sketch": np.zeros((4, SETS * WAYS), np.uint8),
    }
    parts.arrays |= {f"cache.{DIM}.frozen.{name}": array for name, array in cache.items()}
    return parts


def test_what_a_device_saved_is_read(original: CheckpointFile, tmp_path: Path, reader: Any) -> None:
    path = written(tmp_path / "file", on_a_device(copy.deepcopy(original)).content())
    assert reader(path) is None
    parts = on_a_device(copy.deepcopy(original))
    del parts.arrays[f"cache.{DIM}.frozen.tags"]
    assert "tags is missing" in reader(written(path, parts.content()))


def test_what_a_device_saved_is_checked_on_the_cpu_too(
    original: CheckpointFile, tmp_path: Path
) -> None:
    path, tags = tmp_path / "file", f"cache.{DIM}.frozen.tags"

    def change(**arrays: Any) -> str:
        parts = on_a_device(copy.deepcopy(original))
        for name, array in arrays.items():
            parts.arrays.pop(f"cache.{DIM}.frozen.{name}", None)
            if array is not None:
                parts.arrays[f"cache.{DIM}.frozen.{name}"] = array
        return str(refused_by_python(written(path, parts.content())))

    assert f"{tags} is missing" in change(tags=None)
    assert f"{tags} is U32" in change(tags=np.zeros((SETS, WAYS), np.uint32))
    assert f"{tags} is U64(2, 8)" in change(tags=np.zeros((2, WAYS), np.uint64))
    held = np.full((SETS, WAYS), 2**48 - 1, np.uint64)
    assert "cache tags are damaged" in change(tags=np.full((SETS, WAYS), 7, np.uint64))
    held[set_of(7, SETS), 0] = 7 | 1 << 63
    assert "set and not yet written" in change(tags=held)
    assert "not finite" in change(rows=np.full((SETS, WAYS, DIM), np.nan, np.float32))
    assert "a count above" in change(meta=np.full((SETS, WAYS), 2**31, np.uint32))
    assert "an array 'cache.6.frozen.more' too many" in change(more=np.zeros(8, np.uint8))
