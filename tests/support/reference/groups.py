"""Tables that share a cache, and where the current values of their rows are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .cache import RefCache
from .optim import STATES, Rule
from .rounding import F32, I64
from .tables import RefTable


def group_label(dim: int, rule: Rule | None) -> str:
    """Name of the group of a table, as array names have it."""
    if rule is None:
        return f"{dim}.frozen"
    return f"{dim}.{rule.kind}" + ("" if rule.mode == "none" else f".{rule.mode}")


class RefGroup:
    """Tables of one dimension, optimizer and decay mode; `tables` maps their places to them."""

    def __init__(self, dim: int, rule: Rule | None, step: Callable[[], int]) -> None:
        self.step = step  # the collection's write step
        self.dim, self.label = dim, group_label(dim, rule)
        self.elements = [element for _, element in STATES[rule.kind]] if rule else []
        self.tables: dict[int, RefTable] = {}
        self.first: dict[int, int] = {}  # linear row id of a table's row 0
        self.num_rows = 0
        self.cache: RefCache | None = None

    def add(self, t: int, table: RefTable) -> None:
        """Append table number `t` of the collection."""
        self.tables[t], self.first[t] = table, self.num_rows
        self.num_rows += table.num_rows

    def make_cache(self, config: Any, count: Callable[[int, str], None]) -> None:
        """Give the group a cache; `count(t, name)` adds 1 to a statistic of table `t`."""
        sets = config.num_sets
        if sets is None:
            sets = max(1, math.ceil(config.load_factor * self.num_rows / config.ways))
        widths = self.dim * (1 + self.elements.count(True)), self.elements.count(False)
        self.cache = RefCache(
            sets,
            config.ways,
            *widths,
            config.policy,
            self._read,
            self._write_back,
            lambda linear, name: count(self._owner(linear), name),
        )

    # --- slots ---------------------------------------------------------------------------------

    def pack(self, w: F32, states: Sequence[F32]) -> tuple[F32, F32]:
        """Slots of rows: the row and its states of a value an element, and those of one value."""
        mine = list(zip(states, self.elements, strict=True))
        single = [state[:, None] for state, element in mine if not element]
        values = np.concatenate(single, axis=1) if single else np.zeros((len(w), 0), np.float32)
        return np.concatenate([w, *(s for s, element in mine if element)], axis=1), values

    def unpack(self, rows: F32, values: F32) -> tuple[F32, list[F32]]:
        """Inverse of `pack`."""
        w, *elements = np.split(rows, rows.shape[1] // self.dim, axis=1)
        vectors, numbers = iter(elements), iter(values.T)
        return w, [next(vectors) if element else next(numbers) for element in self.elements]

    def _owner(self, linear: int) -> int:
        return next(
            t for t, table in self.tables.items() if linear - self.first[t] in range(table.num_rows)
        )

    def _by_table(self, linear: list[int]) -> Iterator[tuple[int, I64, I64]]:
        owners, ids = np.array([self._owner(row) for row in linear]), np.array(linear)
        for t in self.tables:
            at = np.flatnonzero(owners == t)
            yield t, at, ids[at] - self.first[t]

    def _read(self, linear: list[int]) -> tuple[F32, F32]:
        slots: list[Any] = [None] * len(linear)
        for t, at, ids in self._by_table(linear):
            for i, row, values in zip(at, *self.pack(*self.tables[t].read(ids)), strict=True):
                slots[i] = row, values
        return np.stack([row for row, _ in slots]), np.stack([values for _, values in slots])

    def _write_back(self, linear: list[int], rows: F32, values: F32) -> None:
        for t, at, ids in self._by_table(linear):
            w, states = self.unpack(rows[at], values[at])
            self.tables[t].measure_rounding(ids, w, self.step())
            self.tables[t].write(ids, w, states, self.step())

    # --- current values ------------------------------------------------------------------------

    def slots(self, t: int, ids: I64) -> list[int | None]:
        """Slot of each row, None where it is not cached."""
        cache = self.cache
        return [cache.find(self.first[t] + row) if cache else None for row in ids.tolist()]

    def get(self, t: int, ids: I64) -> tuple[F32, list[F32]]:
        """Current values and states of rows."""
        rows, values = self.pack(*self.tables[t].read(ids))
        for i, slot in enumerate(self.slots(t, ids)):
            if self.cache is not None and slot is not None:
                rows[i], values[i] = self.cache.rows[slot], self.cache.values[slot]
        return self.unpack(rows, values)

    def measure(self, t: int, ids: I64, w: F32, old: F32) -> None:
        """Count the updates of rows, and the noise of those that are not cached."""
        plain = np.array([slot is None for slot in self.slots(t, ids)], bool)
        self.tables[t].measure_updates(ids, w, old, self.step())
        self.tables[t].measure_rounding(ids[plain], w[plain], self.step())

    def put(self, t: int, ids: I64, w: F32, states: Sequence[F32] | None) -> None:
        """New values of rows and, unless they are None, states: in their slots or their table."""
        slots = self.slots(t, ids)
        plain = np.array([slot is None for slot in slots], bool)
        outside = None if states is None else [state[plain] for state in states]
        self.tables[t].write(ids[plain], w[plain], outside, self.step())
        packed = None if states is None else self.pack(w, states)
        for i, slot in enumerate(slots):
            if self.cache is None or slot is None:
                continue
            if packed is None:
                self.cache.put(slot, w[i], self.cache.values[slot])
            else:
                self.cache.put(slot, packed[0][i], packed[1][i])
