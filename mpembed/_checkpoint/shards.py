"""Tables as shards of whole tables, for a checkpoint that several processes write.

Rows and states of a table are arrays by row, which anyone can cut and join. The rest of a table's
state is here, as nothing depends on the cache's size or on how the rows are split: the cached rows
by their numbers in the whole table, with their FP32 values, and counts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._collection.grouping import first_keys
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed._collection.storage import GroupStorage
from mpembed._collection.table_writer import state_columns
from mpembed.optim import Optimizer

FORMAT = 1
#: The columns of `CachedRows.slots`.
SLOT, DIRTY, META = range(3)
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class CachedRows:
    """Rows of a table that a cache holds.

    Attributes
    ----------
    ids : array of int64 (m,)
        Their numbers in the whole table.
    rows : array of float32 (m, D)
        Their values.
    states : dict of name -> array of float32
        Their states: (m, D), or (m,) for one value a row.
    slots : array of int64 (m, 3)
        Slot, whether it is dirty, and what the policy keeps of it.
    """

    ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float32]
    states: dict[str, npt.NDArray[np.float32]]
    slots: npt.NDArray[np.int64]

    def chosen(self, which: Any) -> "CachedRows":
        """Return some of them, by places or a mask."""
        states = {name: values[which] for name, values in self.states.items()}
        return CachedRows(self.ids[which], self.rows[which], states, self.slots[which])

    @classmethod
    def joined(cls, parts: "Iterable[CachedRows]") -> "CachedRows":
        """Return those of several parts, of which there is at least one, in their order."""
        each = list(parts)
        if len(each) == 1:
            return each[0]
        return cls(
            np.concatenate([one.ids for one in each]),
            np.concatenate([one.rows for one in each]),
            {name: np.concatenate([one.states[name] for one in each]) for name in each[0].states},
            np.concatenate([one.slots for one in each]),
        )

    @classmethod
    def empty(cls, dim: int, optimizer: Optimizer | None) -> "CachedRows":
        """Return no rows."""
        return cls(
            np.empty(0, np.int64),
            np.empty((0, dim), np.float32),
            {name: np.empty((0, *shape), np.float32) for name, shape in shapes(optimizer, dim)},
            np.empty((0, 3), np.int64),
        )


@dataclass(frozen=True)
class Shard:
    """What belongs to rows [first, end) of a whole table, beside its arrays by row.

    Attributes
    ----------
    first, end : int
        The rows.
    about : dict
        Counters, statistics and the cache's clock, as JSON can hold them.
    cached : CachedRows
        The cached rows.
    sketch : array of uint8 or None
        That of the cache, with the first table of a group that has rows.
    """

    first: int
    end: int
    about: dict[str, Any]
    cached: CachedRows
    sketch: npt.NDArray[np.uint8] | None = None


def shapes(optimizer: Optimizer | None, dim: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and shape of one row's values of each state."""
    kept = () if optimizer is None else optimizer.states
    return [(one.name, (dim,) if one.shape == registry.STATE_ELEMENT else ()) for one in kept]


def tables_of(settings: Settings, tables: Iterable[int]) -> list[list[int]]:
    """Return which rows of which whole tables some tables are: number, first row, rows.

    Two groups of tables for which it is the same number the rows of their cache in the same way.
    """
    return [
        [settings.table_id(i), settings.tables[i].first_row, settings.tables[i].num_embeddings]
        for i in tables
    ]


def read_shards(state: CollectionState, on: Stream) -> list[Shard]:
    """Return the shard that each table of a collection is, in the tables' order."""
    settings, counts = state.settings, state.counters(on).named()
    stats, noise = (
        StoredArray.of(array).whole(on) for array in (state.storage.stats, state.storage.noise)
    )
    found: dict[int, Shard] = {}
    for group in state.storage.groups:
        cache = None if group.cache is None else _Cache(state, group, on)
        for table in group.plan.tables:
            config, optimizer = settings.tables[table], settings.optimizers[table]
            about = {
                "format": FORMAT,
                **counts,
                "seed": settings.seed,
                "stats": dict(zip(registry.STATS, stats[table].tolist(), strict=True)),
                "noise": dict(zip(registry.NOISE_SUMS, noise[table].tolist(), strict=True)),
                "cache": None if cache is None else cache.about,
            }
            first = config.first_row
            found[table] = Shard(
                first,
                first + config.num_embeddings,
                about,
                CachedRows.empty(config.embedding_dim, optimizer)
                if cache is None
                else cache.rows_of(table),
                cache.sketch if cache is not None and table == cache.sketch_owner else None,
            )
    return [found[table] for table in range(len(settings.tables))]


class _Cache:
    """A group's cache, read.

    Attributes
    ----------
    about : dict
        Its size, policy and clock, and whose rows it holds.
    sketch : array of uint8 or None
        Its sketch.
    sketch_owner : int
        The table whose shard has it, -1 if none does.
    """

    def __init__(self, state: CollectionState, group: GroupStorage, on: Stream) -> None:
        assert group.cache is not None
        assert state.settings.cache is not None
        self._state = state
        self._stored = {name: StoredArray.of(a) for name, a in group.cache.arrays().items()}
        name = f"cache.{group.plan.label}.tags"
        tags = state.without_pins(name, self._stored["tags"].whole(on))
        self._tags = tags.reshape(-1)
        self._keys = self._tags & np.uint64(contract.ID_MASK)
        sketch = self._stored.get("sketch")
        self.sketch = None if sketch is None else sketch.whole(on).copy()
        tables = state.settings.tables
        with_rows = [i for i in group.plan.tables if tables[i].num_embeddings > 0]
        self.sketch_owner = with_rows[0] if with_rows else -1
        self.about = {
            "policy": state.settings.cache.policy,
            "num_sets": tags.shape[0],
            "ways": tags.shape[1],
            "counters": self._stored["counters"].whole(on).tolist(),
            "tables": tables_of(state.settings, with_rows),
        }

        self._first = first_keys(group.plan, state.settings)
        self._held = self._read_rows(group.plan.tables, on)

    def _read_rows(
        self, tables: Sequence[int], on: Stream
    ) -> dict[int, tuple[npt.NDArray[np.int64], Values, Values, Values]]:
        """Return the slots of each table, their rows, their values, and what the policy keeps.

        All are read at once: the slots of every table lie everywhere.
        """
        slots = []
        for table in tables:
            begin = np.uint64(self._first[table])
            end = begin + np.uint64(self._state.settings.tables[table].num_embeddings)
            slots.append(np.flatnonzero((self._keys >= begin) & (self._keys < end)))
        every, cuts = np.concatenate(slots), np.cumsum([len(one) for one in slots])[:-1]
        rows, values = (np.split(self._gather(n, every, on), cuts) for n in ("rows", "values"))
        meta = np.split(self._stored["meta"].whole(on).reshape(-1)[every], cuts)
        return dict(zip(tables, zip(slots, rows, values, meta, strict=True), strict=True))

    def rows_of(self, table: int) -> CachedRows:
        """Return the cached rows of a table."""
        settings = self._state.settings
        config, optimizer = settings.tables[table], settings.optimizers[table]
        begin, dim = np.uint64(self._first[table]), config.embedding_dim
        slots, held, values, meta = self._held[table]
        states = {}
        for name, place in state_columns(optimizer, dim).items():
            source = held if isinstance(place, slice) else values
            states[name] = np.ascontiguousarray(source[:, place])
        dirty = (self._tags[slots] & np.uint64(contract.DIRTY_BIT)) != 0
        return CachedRows(
            (self._keys[slots] - begin).astype(np.int64) + config.first_row,
            np.ascontiguousarray(held[:, :dim]),
            states,
            np.stack([slots, dirty.astype(np.int64), meta.astype(np.int64)], axis=1),
        )

    def _gather(self, name: str, slots: npt.NDArray[np.int64], on: Stream) -> Values:
        if name not in self._stored:
            return np.empty((len(slots), 0), np.float32)
        return self._stored[name].flattened(2).gather(slots, on)
