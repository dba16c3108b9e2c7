"""Continues a collection from saved shards, however the rows were split and cached.

What a collection needs of them is put together as a checkpoint with other settings would have it
(`adapt`): cached rows move to the new sets with their FP32 values, dirty ones first; dirty ones
without room are written to their tables, as an eviction would.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._checkpoint.cache_filling import adapt
from mpembed._checkpoint.manifest import VERSION
from mpembed._checkpoint.shard_checks import check_about, check_cached, covering, has_sketch
from mpembed._checkpoint.shards import DIRTY, META, SLOT, CachedRows, Shard, tables_of
from mpembed._checkpoint.tensor_file import Places
from mpembed._checkpoint.versions import Saved
from mpembed._collection import grouping
from mpembed._collection.grouping import GroupPlan
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState, Counters
from mpembed._collection.state_checks import check_tags
from mpembed._collection.storage import table_fields
from mpembed._collection.table_writer import put_states
from mpembed.config import CacheConfig
from mpembed.load_report import LoadReport

Values = npt.NDArray[Any]
_PIECE = 1 << 16  # rows that are checked at a time


class SavedTable(NamedTuple):
    """What a checkpoint holds for one table of a collection.

    Attributes
    ----------
    arrays : mapping of str -> numpy.ndarray
        ``"rows"`` (n, bytes) and the states, as they are stored, of the table's own rows.
    shards : sequence of Shard
        All that hold rows of it; others are not looked at. For a table without rows any one of
        the whole table's, for its counters.
    """

    arrays: Mapping[str, Values]
    shards: Sequence[Shard]


def load_shards(state: CollectionState, tables: Sequence[SavedTable]) -> LoadReport:
    """Continue from saved shards of all tables, in their order; open batches are dropped.

    Raises
    ------
    ValueError
        If they are not what training leaves, or not all; then nothing has changed.
    """
    saved: list[_Joined] = []  # what has been checked

    def check() -> None:
        saved.append(_Joined(state, tables))

    def fill(on: Stream) -> None:
        one = saved[0]
        _empty_caches(state, on)
        state.reseed(one.seed)
        state.set_counters(one.counters, on)
        report = adapt(state, one.checkpoint(), one.read, on)
        report.started.extend(one.forgotten)
        report.changed.extend(one.changed)
        state.load_report = report
        report.log("the state")

    state.replace(check, fill)
    assert state.load_report is not None
    return state.load_report


def _empty_caches(state: CollectionState, on: Stream) -> None:
    for group in state.storage.groups:
        for name, array in ({} if group.cache is None else group.cache.arrays()).items():
            StoredArray.of(array).fill(contract.EMPTY_TAG if name == "tags" else 0, on)


class _Joined:
    """Saved shards, joined to what one checkpoint of the collection would hold, and checked.

    Attributes
    ----------
    arrays : dict of str -> numpy.ndarray
        As a checkpoint names them. Caches may have another size than the collection's.
    counters : Counters
        The largest of all shards: no write step comes twice.
    seed : int
        The shards' if all have the same.
    forgotten, changed : list of str
        What a report adds.
    """

    def __init__(self, state: CollectionState, tables: Sequence[SavedTable]) -> None:
        self.settings = state.settings
        self.arrays: dict[str, Values] = {}
        self.forgotten: list[str] = []
        self.changed: list[str] = []
        self._shards = [self._checked_shards(i, one) for i, one in enumerate(tables)]
        for i, one in enumerate(tables):
            self._take_rows(i, one)
        self._check_rows(state)
        self._cache = self._saved_cache()
        for plan in grouping.plan(self._saved_settings()):
            self._take_cache(plan)
        abouts = [one.about for shards in self._shards for one in shards]
        counts = [(about["step"], about["updates"]) for about in abouts]
        steps, updates = zip(*counts, strict=True) if counts else ((0,), (0,))
        self.counters = Counters(max(steps), max(updates))
        self.seed = self._seed({about["seed"] for about in abouts})
        self.arrays["stats"] = self._sums("stats", registry.STATS)
        self.arrays["noise"] = self._sums("noise", registry.NOISE_SUMS)

    # ---- tables ---------------------------------------------------------------------------------

    def _checked_shards(self, table: int, given: SavedTable) -> list[Shard]:
        config, optimizer = self.settings.tables[table], self.settings.optimizers[table]
        for one in given.shards:
            check_about(one.about, f"table {config.name!r}: rows {one.first} .. {one.end}")
        first = config.first_row
        if config.num_embeddings == 0:
            same = [one for one in given.shards if (one.first, one.end) == (first, first)]
            return list(same or given.shards)[:1]
        found = covering(first, first + config.num_embeddings, given.shards, config.name)
        for one in found:
            check_cached(config, optimizer, one)
        return found

    def _take_rows(self, table: int, given: SavedTable) -> None:
        config = self.settings.tables[table]
        for field in table_fields(config, self.settings.optimizers[table]):
            shape = (config.num_embeddings, *field.shape)
            values = given.arrays.get(field.name)
            if values is None and config.num_embeddings == 0:
                values = np.empty(shape, field.dtype)
            if values is None or values.dtype != field.dtype or values.shape != shape:
                has = "no such array" if values is None else f"{values.dtype}{list(values.shape)}"
                raise ValueError(
                    f"table {config.name!r}: its {field.name} should be {field.dtype}"
                    f"{list(shape)}, but the state has {has}"
                )
            self.arrays[f"table.{config.name}.{field.name}"] = values

    def _check_rows(self, state: CollectionState) -> None:
        checks = state.checks()
        for name, values in self.arrays.items():
            for begin in range(0, len(values), _PIECE):
                checks.piece(name, begin, values[begin : begin + _PIECE])

    def _sums(self, name: str, entries: Sequence[str]) -> Values:
        """Return each table's counts: those of a saved shard belong to its first row."""
        found = np.zeros((len(self._shards), len(entries)), np.int64)
        for table, (config, shards) in enumerate(
            zip(self.settings.tables, self._shards, strict=True)
        ):
            for one in shards:
                if one.first >= config.first_row:
                    found[table] += [one.about[name].get(entry, 0) for entry in entries]
        return found

    def _seed(self, seeds: set[int]) -> int:
        if len(seeds) == 1:
            return seeds.pop()
        if seeds:
            self.changed.append(f"seed: the shards have {sorted(seeds)}, this collection keeps its")
        return self.settings.seed

    # ---- caches ---------------------------------------------------------------------------------

    def _saved_cache(self) -> CacheConfig | None:
        """Return a cache with the saved policy; its size is not that of the arrays."""
        caches = [one.about["cache"] for shards in self._shards for one in shards]
        policies = [cache["policy"] for cache in caches if cache is not None]
        own = self.settings.cache
        if not policies:
            return None
        chosen = own.policy if own is not None and own.policy in policies else policies[0]
        return CacheConfig(num_sets=1, policy=chosen)

    def _saved_settings(self) -> Settings:
        return dataclasses.replace(self.settings, cache=self._cache)

    def _take_cache(self, plan: GroupPlan) -> None:
        shards = [(table, one) for table in plan.tables for one in self._shards[table]]
        if not plan.cached or self._cache is None:
            if any(one.cached.slots[:, DIRTY].any() for _, one in shards):
                raise ValueError(
                    "the shards have changed rows of frozen tables in a cache, which this "
                    "collection does not have: call flush() before the save"
                )
            return
        own_size = self._same_cache(plan)
        parts = [self._own_cached(table) for table in plan.tables]
        if own_size is None:
            size, places = (sum(len(part.ids) for part in parts), 1), _by_use(parts)
        else:
            size, places = own_size, [part.slots[:, SLOT] for part in parts]
        self._fill_cache(plan, size, parts, places)
        label = f"cache.{plan.label}"
        clocks = [one.about["cache"]["counters"] for _, one in shards if one.about["cache"]]
        clock = [max((one[0] for one in clocks), default=0), 0]
        sketches = [one.sketch for _, one in shards if one.sketch is not None]
        if own_size is not None:
            check_tags(f"{label}.tags", self.arrays[f"{label}.tags"], self._total(plan))
            if sketches:
                self.arrays[f"{label}.sketch"], clock = sketches[0], clocks[0]
        elif has_sketch(self._cache.policy) and self.settings.cache is not None:
            self.forgotten.append(f"cache {plan.label}: counts of rows that it does not hold")
        self.arrays[f"{label}.counters"] = np.array(clock, np.uint64)

    def _same_cache(self, plan: GroupPlan) -> tuple[int, int] | None:
        """Return the size of a group's cache if that is the one that all its rows were in.

        Then slots stay where they are, and a sketch counts the same linear row ids.
        """
        own = self.settings.cache
        if own is None:
            return None
        with_rows = [i for i in plan.tables if self.settings.tables[i].num_embeddings > 0]
        shards = [one for table in with_rows for one in self._shards[table]]
        caches = [one.about["cache"] for one in shards]
        if not caches or any(cache != caches[0] for cache in caches) or caches[0] is None:
            return None
        if caches[0]["tables"] != tables_of(self.settings, with_rows):
            return None
        size = own.sets_for(self._total(plan)), own.ways
        same = (caches[0]["num_sets"], caches[0]["ways"]) == size
        return size if same and caches[0]["policy"] == own.policy else None

    def _total(self, plan: GroupPlan) -> int:
        return sum(self.settings.tables[i].num_embeddings for i in plan.tables)

    def _own_cached(self, table: int) -> CachedRows:
        """Return the cached rows of a table, by numbers of its own."""
        config, optimizer = self.settings.tables[table], self.settings.optimizers[table]
        first, parts = config.first_row, []
        policy = None if self._cache is None else self._cache.policy
        for one in self._shards[table]:
            ids = one.cached.ids
            here = one.cached.chosen((ids >= first) & (ids < first + config.num_embeddings))
            cache = one.about["cache"]
            if cache is not None and cache["policy"] != policy:
                here.slots[:, META] = 0  # `chosen` made a copy
            parts.append(dataclasses.replace(here, ids=here.ids - first))
        parts = parts or [CachedRows.empty(config.embedding_dim, optimizer)]
        return CachedRows.joined(parts)

    def _fill_cache(
        self,
        plan: GroupPlan,
        size: tuple[int, int],
        parts: Sequence[CachedRows],
        places: Sequence[npt.NDArray[np.int64]],
    ) -> None:
        """Lay cached rows out as a cache of this size, sets and ways."""
        slots, keys = size[0] * size[1], grouping.first_keys(plan, self.settings)
        tags = np.full(slots, contract.EMPTY_TAG, np.uint64)
        meta = np.zeros(slots, np.uint32)
        held = np.zeros((slots, plan.slot_floats), np.float32)
        values = np.zeros((slots, plan.slot_values), np.float32)
        for table, part, place in zip(plan.tables, parts, places, strict=True):
            of_part = np.zeros((len(place), plan.slot_floats), np.float32)
            of_values = np.zeros((len(place), plan.slot_values), np.float32)
            of_part[:, : plan.dim] = part.rows
            put_states(self.settings.optimizers[table], part.states, of_part, of_values)
            held[place], values[place] = of_part, of_values
            dirty = np.where(part.slots[:, DIRTY] != 0, np.uint64(contract.DIRTY_BIT), np.uint64(0))
            tags[place] = (part.ids.astype(np.uint64) + np.uint64(keys[table])) | dirty
            meta[place] = part.slots[:, META]
        made: dict[str, Values] = {"tags": tags, "meta": meta, "rows": held}
        if plan.slot_values > 0:
            made["values"] = values
        for name, array in made.items():
            self.arrays[f"cache.{plan.label}.{name}"] = array.reshape(*size, *array.shape[1:])

    # ---- as a checkpoint ------------------------------------------------------------------------

    def checkpoint(self) -> Saved:
        """Return what these arrays are, as of a file."""
        settings = self._saved_settings()
        layout = {name: (array.dtype, array.shape) for name, array in self.arrays.items()}
        names = {name: name for name in layout}
        return Saved(
            VERSION, settings, settings, layout, layout, names, slot_states=True, current=True
        )

    def read(self, name: str, places: Places) -> None:
        """Read an array into places, as from a file."""
        begin = 0
        for target, done in places:
            target[...] = self.arrays[name][begin : begin + len(target)]
            begin += len(target)
            done()


def _by_use(parts: Sequence[CachedRows]) -> list[npt.NDArray[np.int64]]:
    """Return a place for each row: those that were used most or last come first.

    Where a set has no room for all its rows, the first stay; the order is the same however the
    rows were split.
    """
    meta = np.concatenate([part.slots[:, META] for part in parts])
    tables = np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts])
    order = np.lexsort((np.concatenate([part.ids for part in parts]), tables, -meta))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return np.split(places, np.cumsum([len(part.ids) for part in parts])[:-1])
