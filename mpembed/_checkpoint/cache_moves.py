"""Caches of a checkpoint whose size, tables or optimizer have changed.

A slot's row is the row: the table's is older where the slot is dirty. So slots move to their new
sets with all they hold, dirty ones first. Dirty rows without room there go to their tables.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings import contract, kernels
from mpembed._bindings.device import Stream
from mpembed._checkpoint.adapting import Adapter
from mpembed._collection.grouping import GroupPlan, first_keys
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings
from mpembed._collection.storage import GroupStorage

Values = npt.NDArray[Any]
Slots = npt.NDArray[np.int64]


class NewCache:
    """The cache of a new group, on the host while it is filled."""

    def __init__(self, group: GroupStorage, settings: Settings, on: Stream) -> None:
        assert group.cache is not None
        self.plan, self.keys = group.plan, first_keys(group.plan, settings)
        self._stored = {name: StoredArray.of(a) for name, a in group.cache.arrays().items()}
        self.arrays = {name: stored.shared(on) for name, stored in self._stored.items()}
        self.num_sets, self.ways = self.arrays["tags"].shape
        self._used = np.zeros(self.num_sets, np.int64)

    def flat(self, name: str) -> Values:
        """Return an array by slot."""
        array = self.arrays[name]
        return array.reshape(-1, *array.shape[2:])

    def place(self, keys: npt.NDArray[np.uint64]) -> Slots:
        """Return a free slot in the set of each key, -1 where it is full."""
        sets = kernels.cache_sets(np.ascontiguousarray(keys), self.num_sets)
        order = np.argsort(sets, kind="stable")
        ordered = sets[order]
        begins = np.searchsorted(ordered, ordered, side="left")
        ways = self._used[ordered] + np.arange(len(keys)) - begins
        self._used += np.bincount(sets, minlength=self.num_sets)
        np.minimum(self._used, self.ways, out=self._used)
        slots = np.empty(len(keys), np.int64)
        slots[order] = np.where(ways < self.ways, ordered * self.ways + ways, -1)
        return slots

    def finish(self, on: Stream) -> None:
        """Write the arrays where the kernels run."""
        for name, stored in self._stored.items():
            stored.write(0, self.arrays[name], on)


class OldCache:
    """The cache of a group of the checkpoint: what its slots hold, and where that goes.

    Attributes
    ----------
    plan : GroupPlan
        The group.
    table, row : array of int
        Of each slot; the table is -1 where the slot is empty or its row is dropped.
    dirty : array of bool
        Of each slot.
    slot : array of int
        The new slot, -1 if there is none.
    used, dropped : int
        How many slots hold a row, and how many of these rows are dropped.
    """

    def __init__(self, plan: GroupPlan, adapter: Adapter) -> None:
        self.plan, self._adapter = plan, adapter
        self._keys = first_keys(plan, adapter.saved.settings)
        tags = adapter.whole(self.name("tags"))
        assert tags is not None
        self.num_sets, self.ways = tags.shape
        tags = tags.reshape(-1)
        keys = tags & np.uint64(contract.ID_MASK)
        used = keys != contract.EMPTY_TAG
        self.dirty = (tags & np.uint64(contract.DIRTY_BIT)) != 0
        bases = np.array(list(self._keys.values()), np.uint64)
        place = np.searchsorted(bases, keys, side="right") - 1
        # Tables without rows begin where the next one does, which is the last of them.
        self.table = np.where(used, np.array(plan.tables)[place], -1)
        self.row = np.where(used, keys - bases[place], 0).astype(np.int64)
        self.used = int(used.sum())
        kept = {table: adapter.kept_rows(table) for table in plan.tables}
        for table, count in kept.items():
            if count < adapter.saved.settings.tables[table].num_embeddings:
                self.table[(self.table == table) & (self.row >= count)] = -1
        self.slot = np.full(tags.size, -1, np.int64)
        self.dropped = self.used - int((self.table >= 0).sum())

    def name(self, kind: str) -> str:
        """Return the name of one of its arrays."""
        return f"cache.{self.plan.label}.{kind}"

    def stays(self, new: NewCache) -> bool:
        """Whether every slot stays where it is."""
        size = new.num_sets, new.ways
        return (
            new.plan.tables == self.plan.tables
            and new.keys == self._keys
            and size == (self.num_sets, self.ways)
        )

    def keeps_keys(self, new: NewCache) -> bool:
        """Whether every row has the linear row id that it had."""
        return all(new.keys.get(table) == key for table, key in self._keys.items())
