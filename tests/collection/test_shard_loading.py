"""Collections that continue from shards: other spans of rows, other caches, damaged shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import POLICIES
from reference.pair import assert_same

import mpembed as mpe
from mpembed._checkpoint.shard_loading import SavedTable, load_shards
from mpembed._checkpoint.shards import META, SLOT, CachedRows, Shard, read_shards
from mpembed.collection import collection_state
from mpembed.load_report import LoadReport

pytestmark = pytest.mark.usefixtures("each_device")
DIM, ROWS = 6, (90, 40)
SMALL = mpe.CacheConfig(load_factor=0.25, policy="lfu", ways=8)
LARGE = mpe.CacheConfig(load_factor=4.0, policy="lfu")
Span = tuple[int, int, int]  # table, first row, end
WHOLE: list[Span] = [(0, 0, 90), (1, 0, 40)]


def make(spans: Sequence[Span], precision: str = "int4", cache: Any = SMALL, **options: Any) -> Any:
    tables = [
        mpe.TableConfig(
            f"t{table}",
            end - first,
            DIM,
            precision,
            table_id=table,
            first_row=first,
            total_rows=ROWS[table],
            trainable=options.get("trainable", True),
        )
        for table, first, end in spans
    ]
    optimizer = options.get("optimizer") or mpe.Adam(0.05)
    return on_device.make(tables, optimizer=optimizer, cache=cache, seed=options.get("seed", 5))


def train(emb: Any, begin: int, end: int) -> list[Any]:
    """Steps on random rows of all tables, low ones more often."""
    outputs = []
    for step in range(begin, end):
        rng = np.random.default_rng(step)
        ids = [
            (rng.random(20 if one.num_embeddings else 0) ** 2 * one.num_embeddings).astype(np.int64)
            for one in emb.tables
        ]
        counts = [np.full(5, len(some) // 5) for some in ids]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        outputs.append(emb.forward(np.concatenate(ids), offsets))
        emb.backward(rng.standard_normal(outputs[-1].shape).astype(np.float32))
    return outputs


def trained(spans: Sequence[Span] = WHOLE, **options: Any) -> Any:
    """A collection whose cache has rows of every kind: dirty, and clean ones that were written."""
    emb = make(spans, **options)
    train(emb, 0, 6)
    emb.flush()
    train(emb, 6, 8)
    return emb


def shards(*embs: Any) -> dict[int, list[Shard]]:
    """Return the shards of some collections by table."""
    found: dict[int, list[Shard]] = {}
    for emb in embs:
        state = collection_state(emb)
        with state.reading() as on:
            for config, one in zip(emb.tables, read_shards(state, on), strict=True):
                found.setdefault(config.table_id, []).append(one)
    return found


def saved(embs: Sequence[Any], to: Any) -> list[SavedTable]:
    """Return what `to` needs of some collections that have all rows."""
    arrays: dict[tuple[int, str], Any] = {}
    for emb in embs:
        own = emb.state_arrays()
        for config in emb.tables:
            for name, values in own.items():
                if name.startswith(f"table.{config.name}."):
                    key = config.table_id, name.rpartition(".")[2]
                    whole = arrays.setdefault(
                        key, np.zeros((ROWS[config.table_id], *values.shape[1:]), values.dtype)
                    )
                    whole[config.first_row : config.first_row + len(values)] = values
    by_table = shards(*embs)
    return [
        SavedTable(
            {
                name: whole[one.first_row : one.first_row + one.num_embeddings]
                for (table, name), whole in arrays.items()
                if table == one.table_id
            },
            by_table[one.table_id],
        )
        for one in to.tables
    ]


def load(to: Any, *embs: Any) -> LoadReport:
    return load_shards(collection_state(to), saved(embs, to))


def values(emb: Any) -> dict[str, Any]:
    """Return rows and states, wherever they are, by table and row of the whole table."""
    found: dict[str, Any] = {}
    for one in emb.tables:
        ids = np.arange(one.num_embeddings)
        named = {"rows": emb.rows(one.name, ids), **emb.state(one.name, ids)}
        for name, array in named.items():
            for row in ids:
                found[f"{one.name} {name} {one.first_row + row}"] = array[row].tobytes()
    return found


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy is not None])
@pytest.mark.parametrize("optimizer", ["adam_bf16", "rowwise_adagrad", "sgd"])
def test_the_same_rows_and_cache_go_on_bit_for_bit(optimizer: str, policy: str) -> None:
    cache = mpe.CacheConfig(load_factor=0.25, policy=policy, ways=8)
    emb = trained(cache=cache, optimizer=kinds.named(optimizer))
    again = make(WHOLE, cache=cache, optimizer=kinds.named(optimizer), seed=77)
    train(again, 20, 23)
    report = load(again, emb)
    assert not report.converted
    assert not report.started
    assert_same(again.state_arrays(), emb.state_arrays(), "loaded")
    assert_same(train(again, 8, 12), train(emb, 8, 12), "outputs")
    assert_same(again.state_arrays(), emb.state_arrays(), "trained on")


def test_rows_are_joined_and_cut_with_the_values_of_cached_ones() -> None:
    whole = trained()
    spans: list[list[Span]] = [[(0, 0, 33), (1, 40, 40)], [(1, 0, 40), (0, 33, 90)]]
    parts = [make(some, cache=LARGE) for some in spans]
    for one in parts:
        load(one, whole)
    assert values(parts[0]) | values(parts[1]) == values(whole)
    joined = make(WHOLE, cache=LARGE)
    load(joined, *parts)
    assert values(joined) == values(whole)
    assert joined.step == whole.step
    assert joined.updates == whole.updates
    for name, counts in whole.stats().items():
        assert joined.stats()[name] == counts


def test_rows_without_room_are_rounded_once_and_counted() -> None:
    whole = trained()
    before, cached = whole.state_arrays(), shards(whole)
    small = make(WHOLE, cache=mpe.CacheConfig(num_sets=1, policy="lfu", ways=8))
    report = load(small, whole)
    held = {(t, int(row)) for t, some in shards(small).items() for row in some[0].cached.ids}
    written = clean = 0
    for table, some in cached.items():
        one, now = some[0].cached, small.state_arrays()[f"table.t{table}.rows"]
        old = before[f"table.t{table}.rows"]
        left = np.setdiff1d(np.arange(ROWS[table]), one.ids)
        assert (now[left] == old[left]).all()
        for row, exact, dirty in zip(one.ids, one.rows, one.slots[:, 1], strict=True):
            value = small.rows(f"t{table}", np.array([row]))[0]
            if (table, int(row)) in held:
                assert value.tobytes() == exact.tobytes()
            elif dirty:
                step = (exact.max() - exact.min()) / 15
                assert np.abs(value - exact).max() <= 1.01 * step
                written += 1
            else:
                assert (now[row] == old[row]).all()
                clean += 1
    assert len(held) == 8
    assert written > 0
    assert clean > 0
    assert f"{written} dirty ones without room written to their tables" in str(report)
    assert small.load_report is report
    assert small.step == whole.step + 1


def test_the_rows_that_were_used_most_stay_however_they_were_split() -> None:
    whole = trained()
    spans: list[list[Span]] = [[(0, 0, 33), (1, 0, 9)], [(0, 33, 90), (1, 9, 40)]]
    parts = [make(some, cache=LARGE) for some in spans]
    for one in parts:
        load(one, whole)
    found = []
    for sources in ([whole], parts):
        small = make(WHOLE, cache=mpe.CacheConfig(num_sets=1, policy="lfu", ways=8))
        load(small, *sources)
        found.append(small.state_arrays())
    assert_same(found[1], found[0], "one and two sources")


def test_a_cache_is_left_and_begun() -> None:
    whole, without = trained(), make(WHOLE, cache=None)
    report = load(without, whole)
    assert "no cache any more" in str(report)
    again = make(WHOLE)
    load(again, without)
    assert all(len(some[0].cached.ids) == 0 for some in shards(again).values())
    assert values(again) == values(without)


def test_another_policy_begins_its_counts_anew() -> None:
    whole = trained()
    other = make(WHOLE, cache=mpe.CacheConfig(load_factor=4.0, policy="lru"))
    report = load(other, whole)
    assert "its policy's counts" in str(report)
    assert values(other) == values(whole)
    assert all(not some[0].cached.slots[:, META].any() for some in shards(other).values())


def test_the_larger_counters_of_shards_count() -> None:
    parts = [trained([(0, 0, 33), (1, 0, 40)]), trained([(0, 33, 90)])]
    train(parts[1], 8, 9)
    whole = make(WHOLE, cache=LARGE)
    load(whole, *parts)
    assert whole.step == parts[1].step > parts[0].step
    assert whole.updates == parts[1].updates
    counts = [one.stats()["t0"]["accesses"] for one in parts]
    assert whole.stats()["t0"]["accesses"] == sum(counts)


def test_frozen_tables_keep_their_rows() -> None:
    whole = make(WHOLE, trainable=False, cache=None)
    whole.set_rows("t0", np.arange(3), np.ones((3, DIM), np.float32))
    part = make([(0, 1, 50)], trainable=False, cache=None)
    load(part, whole)
    assert values(part).items() <= values(whole).items()


def changed(one: Shard, **fields: Any) -> Shard:
    return dataclasses.replace(one, cached=dataclasses.replace(one.cached, **fields))


def twice(cached: CachedRows) -> CachedRows:
    return CachedRows.joined([cached, cached])


BAD: dict[str, tuple[Callable[[list[Shard]], list[Shard]], str]] = {
    "a shard is missing": (lambda some: some[:1], "no shard with row 33"),
    "two have a row": (
        lambda some: [*some, dataclasses.replace(some[1], first=32)],
        "two shards",
    ),
    "a row of another": (
        lambda some: [changed(some[0], ids=some[0].cached.ids + 33), some[1]],
        "a row of another shard",
    ),
    "a row twice": (
        lambda some: [dataclasses.replace(some[0], cached=twice(some[0].cached)), some[1]],
        "a row twice",
    ),
    "not finite": (
        lambda some: [changed(some[0], rows=some[0].cached.rows * np.float32("nan")), some[1]],
        "not finite",
    ),
    "another type": (
        lambda some: [changed(some[0], rows=some[0].cached.rows.astype(np.float64)), some[1]],
        "rows is float64",
    ),
    "no states": (lambda some: [changed(some[0], states={}), some[1]], "have"),
    "a slot out of range": (
        lambda some: [changed(some[0], slots=some[0].cached.slots + 10**7), some[1]],
        "out of range",
    ),
    "another format": (
        lambda some: [dataclasses.replace(some[0], about={**some[0].about, "format": 9}), some[1]],
        "format 9",
    ),
    "no counters": (
        lambda some: [dataclasses.replace(some[0], about={"format": 1}), some[1]],
        "it has",
    ),
    "a negative step": (
        lambda some: [dataclasses.replace(some[0], about={**some[0].about, "step": -1}), some[1]],
        "step",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_damaged_shards_change_nothing(what: str) -> None:
    change, message = BAD[what]
    parts = [trained([(0, 0, 33), (1, 0, 40)]), trained([(0, 33, 90)])]
    whole = trained()
    before = whole.state_arrays()
    given = saved(parts, whole)
    given[0] = given[0]._replace(shards=change(list(given[0].shards)))
    with pytest.raises(ValueError, match=message):
        load_shards(collection_state(whole), given)
    assert_same(whole.state_arrays(), before, what)


def test_cached_rows_in_a_wrong_set_are_refused() -> None:
    whole, again = trained(), make(WHOLE)
    given = saved([whole], again)
    slots = given[0].shards[0].cached.slots.copy()
    slots[:, SLOT] = slots[::-1, SLOT]
    given[0] = given[0]._replace(shards=[changed(given[0].shards[0], slots=slots)])
    with pytest.raises(ValueError, match="tags are damaged"):
        load_shards(collection_state(again), given)


@pytest.mark.parametrize("name", ["rows", "exp_avg"])
def test_arrays_of_another_size_are_refused(name: str) -> None:
    whole, again = trained(), make(WHOLE)
    given = saved([whole], again)
    arrays = {**given[0].arrays, name: given[0].arrays[name][:-1]}
    given[0] = given[0]._replace(arrays=arrays)
    with pytest.raises(ValueError, match=f"its {name} should be"):
        load_shards(collection_state(again), given)
