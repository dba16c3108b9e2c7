"""Fills the caches of a collection from those of a checkpoint with other settings."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._checkpoint.adapting import Adapter, Read, initial_values
from mpembed._checkpoint.cache_moves import NewCache, OldCache
from mpembed._checkpoint.state_changes import kept_states
from mpembed._checkpoint.versions import Saved
from mpembed._collection import grouping
from mpembed._collection.row_states import table_states
from mpembed._collection.state import CollectionState
from mpembed._collection.table_writer import put_states, state_columns
from mpembed.load_report import LoadReport

Values = npt.NDArray[Any]


def adapt(state: CollectionState, saved: Saved, read: Read, on: Stream) -> LoadReport:
    """Fill a collection from a checkpoint with other settings, or of an earlier layout."""
    adapter = Adapter(state, saved, read, on)
    caches = _Caches(adapter)
    adapter.fill_tables(caches.without_room())
    caches.fill()
    adapter.fill_counts()
    adapter.finish()
    return adapter.report


class _Caches:
    """The caches of the checkpoint and the new ones; where what goes is chosen at once."""

    def __init__(self, adapter: Adapter) -> None:
        saved, state = adapter.saved.settings, adapter.state
        self._adapter = adapter
        self._new = [
            NewCache(group, state.settings, adapter.on)
            for group in state.storage.groups
            if group.cache is not None
        ]
        self._old = [
            OldCache(plan, adapter)
            for plan in grouping.plan(saved)
            if plan.cached and saved.cache is not None
        ]
        for dirty in (True, False):
            for source in self._old:
                for target in self._new:
                    _place(source, target, dirty=dirty)

    def without_room(self) -> dict[int, npt.NDArray[np.int64]]:
        """Return the rows of each table that are to be written back."""
        found = {}
        for source in self._old:
            rest = source.dirty & (source.slot < 0)
            for table in source.plan.tables:
                found[table] = source.row[rest & (source.table == table)]
        return found

    def fill(self) -> None:
        """Move what slots hold; the tables have their rows and states already."""
        by_table = {table: cache for cache in self._new for table in cache.plan.tables}
        for source in self._old:
            _Move(self._adapter, source, by_table).run()
        for target in self._new:
            sources = [source for source in self._old if _feeds(source, target)]
            _keep_policy(self._adapter, target, sources)
            target.finish(self._adapter.on)


def _feeds(source: OldCache, target: NewCache) -> bool:
    """Whether tables of an old group are in a new one."""
    return not set(source.plan.tables).isdisjoint(target.plan.tables)


def _place(source: OldCache, target: NewCache, *, dirty: bool) -> None:
    """Choose the new slots of the old ones that go there and are dirty, or are not."""
    here = np.flatnonzero(np.isin(source.table, target.plan.tables) & (source.dirty == dirty))
    if source.stays(target):
        source.slot[here] = here
        return
    bases = np.zeros(max(target.plan.tables) + 1, np.uint64)
    for table, key in target.keys.items():
        bases[table] = key
    source.slot[here] = target.place(bases[source.table[here]] + source.row[here].astype(np.uint64))


class _Move:
    """Moves the slots of one old group."""

    def __init__(self, adapter: Adapter, source: OldCache, by_table: dict[int, NewCache]) -> None:
        self._adapter, self._source, self._by_table = adapter, source, by_table
        self._written = 0
        values = adapter.whole(source.name("values"))
        self._values = None if values is None else values.reshape(-1, values.shape[-1])
        meta = adapter.whole(source.name("meta"))
        assert meta is not None
        self._meta = meta.reshape(-1)

    def run(self) -> None:
        """Move all of them."""
        adapter, source = self._adapter, self._source
        adapter.read(source.name("rows"), self._move)
        name, held = f"cache {source.plan.label}", int((source.slot >= 0).sum())
        targets = [self._by_table.get(table) for table in source.plan.tables]
        if targets[0] is None:
            gone = f"no cache any more, {self._written:,} dirty rows written to their tables"
            adapter.report.converted.append(f"{name}: {gone}")
        elif source.stays(targets[0]):
            adapter.report.kept.append(f"{name}: {held:,} rows")
        else:
            adapter.report.converted.append(f"{name}: {self._moved(held)}")

    def _moved(self, held: int) -> str:
        """Say where each row of the cache is."""
        used, dropped, written = self._source.used, self._source.dropped, self._written
        others = {
            "dirty ones without room written to their tables": written,
            "clean ones without room": used - dropped - held - written,
            "dropped with their tables' rows": dropped,
        }
        moved = f"{held:,} of {used:,} rows in new sets"
        return ", ".join([moved, *(f"{count:,} {what}" for what, count in others.items() if count)])

    def _move(self, begin: int, block: Values) -> None:
        """Move the slots of some sets; `block` (sets, ways, floats) is what they hold."""
        source = self._source
        slots = block.reshape(-1, block.shape[-1])
        first = begin * source.ways
        tables = source.table[first : first + len(slots)]
        for table in np.unique(tables[tables >= 0]).tolist():
            here = np.flatnonzero(tables == table)
            self._move_table(table, first + here, slots[here])

    def _move_table(self, table: int, old: npt.NDArray[np.int64], slots: Values) -> None:
        adapter, source = self._adapter, self._source
        rows = slots[:, : source.plan.dim]
        states = self._states(table, old, slots)
        new = source.slot[old]
        moved, rest = new >= 0, (new < 0) & source.dirty[old]
        if rest.any():
            ids = source.row[old[rest]]
            adapter.write_rows(table, ids, rows[rest])
            adapter.write_states(table, ids, {key: one[rest] for key, one in states.items()})
            self._written += int(rest.sum())
        if moved.any():
            ids = source.row[old[moved]]
            if table in adapter.converted_rows:
                adapter.refuse_unstorable(table, ids, rows[moved])
            kept = {key: one[moved] for key, one in states.items()}
            self._put(table, old[moved], new[moved], rows[moved], kept)

    def _put(
        self,
        table: int,
        old: npt.NDArray[np.int64],
        new: npt.NDArray[np.int64],
        rows: Values,
        states: dict[str, Values],
    ) -> None:
        """Fill new slots."""
        source, target = self._source, self._by_table[table]
        held = np.zeros((len(new), target.plan.slot_floats), np.float32)
        held[:, : rows.shape[1]] = rows
        values = np.zeros((len(new), target.plan.slot_values), np.float32)
        optimizer = self._adapter.state.settings.optimizers[table]
        put_states(optimizer, states, held, values)
        # A table in another format holds but a rounding of the slot's row. Another format of states
        # makes no slot dirty: its row would be rounded once more.
        dirty = source.dirty[old] | (table in self._adapter.converted_rows)
        keys = source.row[old].astype(np.uint64) + np.uint64(target.keys[table])
        target.flat("rows")[new] = held
        if "values" in target.arrays:
            target.flat("values")[new] = values
        target.flat("tags")[new] = keys | np.where(dirty, np.uint64(contract.DIRTY_BIT), 0)
        target.flat("meta")[new] = self._meta[old]

    def _states(self, table: int, old: npt.NDArray[np.int64], slots: Values) -> dict[str, Values]:
        """Return the states of rows for the new optimizer: those it shares, the rest initial."""
        adapter, source = self._adapter, self._source
        settings = adapter.state.settings
        before, now = adapter.saved.settings.optimizers[table], settings.optimizers[table]
        if not adapter.saved.slot_states:  # the tables have them
            return dict(table_states(adapter.state, table, source.row[old], adapter.on))
        places, kept = state_columns(before, source.plan.dim), kept_states(before, now)
        found: dict[str, Values] = {}
        for one in () if now is None else now.states:
            place = places.get(one.name)
            if one.name not in kept:
                count = (
                    (len(old), source.plan.dim)
                    if one.shape == registry.STATE_ELEMENT
                    else (len(old),)
                )
                found[one.name] = np.full(count, initial_values(one, table, settings))
            elif isinstance(place, slice):
                found[one.name] = slots[:, place]
            else:
                assert self._values is not None
                found[one.name] = self._values[old, place]
        return found


def _keep_policy(adapter: Adapter, target: NewCache, sources: list[OldCache]) -> None:
    """Keep what the policy knows, as far as it is still true; else it starts anew."""
    old, new = adapter.saved.settings.cache, adapter.state.settings.cache
    name = f"cache {target.plan.label}"
    if not sources:
        adapter.report.added.append(f"{name}: empty")
        return
    if len(sources) > 1 or old is None or new is None or old.policy != new.policy:
        target.arrays["meta"][...] = 0
        adapter.report.started.append(f"{name}: its policy's counts")
        return
    counters = adapter.whole(sources[0].name("counters"))
    assert counters is not None
    sketch = adapter.whole(sources[0].name("sketch"))
    if sketch is not None:
        own = target.arrays["sketch"]
        if own.shape == sketch.shape and sources[0].keeps_keys(target):
            own[...] = sketch
        else:
            counters[1] = 0
            adapter.report.started.append(f"{name}: counts of rows that it does not hold")
    target.arrays["counters"][...] = counters
