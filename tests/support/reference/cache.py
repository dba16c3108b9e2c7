"""The set-associative cache of one group of tables, slot by slot: section 6 of the numerics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .rounding import F32

ROW_BITS = (1 << 48) - 1
EMPTY = ROW_BITS
PIN = 1 << 56
PIN_MASK = 0x7F << 56
DIRTY = 1 << 63
M64 = 0xFFFFFFFFFFFFFFFF
M32 = 0xFFFFFFFF


def splitmix64(value: int) -> int:
    """The mixing hash of a linear row id."""
    z = (value + 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


class RefCache:
    """Slots, tags, policy state and sketch of one group.

    A slot has `width` floats, a row and its states of a value an element, and apart from them
    `singles` states of one value. `write_back(ids, rows, values)` and `read(ids)` go to the tables
    of linear row ids; `count(id, name)` adds 1 to a statistic of that table.
    """

    def __init__(
        self,
        num_sets: int,
        ways: int,
        width: int,
        singles: int,
        policy: str,
        read: Callable[[list[int]], tuple[F32, F32]],
        write_back: Callable[[list[int], F32, F32], None],
        count: Callable[[int, str], None],
    ) -> None:
        self.num_sets, self.ways, self.policy = num_sets, ways, policy
        self.read, self.write_back, self.count = read, write_back, count
        slots = num_sets * ways
        self.tags = [EMPTY] * slots
        self.meta = [0] * slots
        self.rows = np.zeros((slots, width), np.float32)
        self.values = np.zeros((slots, singles), np.float32)
        self.cells = 1
        while self.cells < slots:
            self.cells *= 2
        self.sketch = np.zeros((4, self.cells), np.uint8)
        self.clock = 0
        self.samples = 0

    def find(self, row: int) -> int | None:
        """Slot of a linear row id, or None."""
        first = self._set(row) * self.ways
        for slot in range(first, first + self.ways):
            if self.tags[slot] != EMPTY and self.tags[slot] & ROW_BITS == row:
                return slot
        return None

    def admit(self, unique: list[int]) -> list[int]:
        """Admit a batch's unique rows (ascending); returns the rows that were pinned."""
        self.clock += 1
        pinned, misses = [], []
        if self.policy == "lfu":
            self.samples += len(unique)
        for row in unique:
            slot = self.find(row)
            if slot is None:
                misses.append(row)
                self.count(row, "misses")
            else:
                self._hit(slot)
                pinned.append(row)
                self.count(row, "hits")
        estimates = self._estimates(misses)
        admitted, evicted = [], []
        for row in misses:
            if (slot := self._choose(row, estimates.get(row, 0))) is None:
                continue
            if self.tags[slot] != EMPTY and self.tags[slot] & DIRTY:
                evicted.append((slot, self.tags[slot] & ROW_BITS))
            self._fill(slot, row, estimates.get(row, 0))
            admitted.append((slot, row))
        # No row is both evicted and read: rows of the batch are never its victims.
        self._write_back(evicted)
        if admitted:
            slots = [slot for slot, _ in admitted]
            self.rows[slots], self.values[slots] = self.read([row for _, row in admitted])
        pinned += [row for _, row in admitted]
        if self.policy == "lfu" and self.samples >= 16 * len(self.tags):
            self.meta = [count >> 1 for count in self.meta]
            self.sketch >>= np.uint8(1)
            self.samples = 0
        return pinned

    def unpin(self, rows: list[int]) -> None:
        """Take back one pin of each row."""
        for row in rows:
            slot = self.find(row)
            assert slot is not None
            assert self.tags[slot] & PIN_MASK
            self.tags[slot] -= PIN

    def put(self, slot: int, row: F32, values: F32) -> None:
        """New value of a cached row, with or without its states: the slot becomes dirty."""
        self.rows[slot, : len(row)], self.values[slot] = row, values
        self.tags[slot] |= DIRTY

    def flush(self) -> None:
        """Write every dirty slot back and mark it clean."""
        dirty = [slot for slot, tag in enumerate(self.tags) if tag != EMPTY and tag & DIRTY]
        self._write_back([(slot, self.tags[slot] & ROW_BITS) for slot in dirty])
        for slot in dirty:
            self.tags[slot] &= ~DIRTY

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Raw state under the names that a collection uses."""
        shape = (self.num_sets, self.ways)
        out: dict[str, npt.NDArray[np.generic]] = {
            "tags": np.array(self.tags, np.uint64).reshape(shape),
            "meta": np.array(self.meta, np.uint32).reshape(shape),
            "rows": self.rows.reshape(*shape, -1),
            "counters": np.array([self.clock, self.samples], np.uint64),
        }
        if self.values.size:
            out["values"] = self.values.reshape(*shape, -1)
        if self.policy == "lfu":
            out["sketch"] = self.sketch
        return out

    def _set(self, row: int) -> int:
        return ((splitmix64(row) >> 32) * self.num_sets) >> 32

    def _hit(self, slot: int) -> None:
        self.tags[slot] += PIN
        if self.policy == "lru":
            self.meta[slot] = self.clock & M32
        else:
            self.meta[slot] = min(self.meta[slot] + 1, 255)

    def _cells(self, row: int) -> list[tuple[int, int]]:
        z = splitmix64(row)
        a, b = z & M32, (z >> 32) | 1
        return [(j, ((a + j * b) & M32) % self.cells) for j in range(4)]

    def _estimates(self, misses: list[int]) -> dict[int, int]:
        if self.policy != "lfu":
            return {}
        estimates = {
            row: min(1 + min(int(self.sketch[cell]) for cell in self._cells(row)), 255)
            for row in misses
        }
        for row in misses:
            self._raise_cells(row, estimates[row])
        return estimates

    def _raise_cells(self, row: int, count: int) -> None:
        for cell in self._cells(row):
            self.sketch[cell] = max(int(self.sketch[cell]), count)

    def _victim(self, first: int) -> int | None:
        best, best_key = None, None
        for slot in range(first, first + self.ways):
            if self.tags[slot] & PIN_MASK:
                continue
            # The smallest key is the victim; ties stay with the lowest way.
            age = (self.clock - self.meta[slot]) & M32
            key = -age if self.policy == "lru" else self.meta[slot]
            if best_key is None or key < best_key:
                best, best_key = slot, key
        return best

    def _choose(self, row: int, estimate: int) -> int | None:
        first = self._set(row) * self.ways
        empty = [s for s in range(first, first + self.ways) if self.tags[s] == EMPTY]
        slot = empty[0] if empty else self._victim(first)
        if slot is None:
            self.count(row, "conflict_misses")
            return None
        if not empty and self.policy == "lfu" and estimate <= self.meta[slot]:
            self.count(row, "rejected")
            return None
        return slot

    def _fill(self, slot: int, row: int, estimate: int) -> None:
        if self.tags[slot] != EMPTY:
            old = self.tags[slot] & ROW_BITS
            self.count(old, "evictions")
            if self.policy == "lfu":
                self._raise_cells(old, min(self.meta[slot], 255))
        self.tags[slot] = row | PIN
        self.meta[slot] = estimate if self.policy == "lfu" else self.clock & M32

    def _write_back(self, places: list[tuple[int, int]]) -> None:
        if places:
            rows = [row for _, row in places]
            slots = [slot for slot, _ in places]
            self.write_back(rows, self.rows[slots], self.values[slots])
            for row in rows:
                self.count(row, "write_backs")
