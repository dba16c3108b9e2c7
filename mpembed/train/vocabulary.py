"""From categorical values to table rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpembed.train.clicks import MISSING_CAT

#: Rows that every table has: one for missing values, one shared by rare and unseen ones.
MISSING_ROW, RARE_ROW, FIRST_ROW = 0, 1, 2

I64 = npt.NDArray[np.int64]
_MERGE_VALUES = 1 << 20


def _bucket(values: I64, buckets: int) -> I64:
    """Hash to a bucket with the finaliser of SplitMix64: the same everywhere, evenly spread."""
    x = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(buckets)).astype(np.int64)


@dataclass
class ValueCounts:
    """Counts of the values of one column, gathered chunk by chunk."""

    values: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    counts: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    _pending: list[I64] = field(default_factory=list)
    _size: int = 0

    def add(self, values: I64) -> None:
        """Count the values of one more chunk.

        Parameters
        ----------
        values : ndarray of int64
            Raw values, ``MISSING_CAT`` among them.
        """
        self._pending.append(values)
        self._size += len(values)
        # Merging costs as much as all the values known: wait until as many new ones have come.
        if self._size >= max(_MERGE_VALUES, len(self.values)):
            self.merge()

    def merge(self) -> None:
        """Bring `values` and `counts` up to date."""
        if not self._pending:
            return
        new, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        known = np.concatenate([self.values, new])
        self.values, where = np.unique(known, return_inverse=True)
        total = np.zeros(len(self.values), np.int64)
        # Each of the two parts holds a value at most once, so plain indexing adds all of it.
        total[where[: len(self.counts)]] += self.counts
        total[where[len(self.counts) :]] += counts
        self.counts, self._pending, self._size = total, [], 0


class Vocabulary:
    """The rows of one table.

    Row 0 stands for a missing value and row 1 for every value seen fewer than `min_count` times in
    the training part, or never. The others have a row each, unless that makes more than `max_rows`:
    then they share ``max_rows - 2`` rows by a hash.

    Parameters
    ----------
    counts : ValueCounts
        Values of the training part.
    min_count : int
        Occurrences that earn a row.
    max_rows : int, optional
        Most rows the table may have, at least 3.
    """

    def __init__(self, counts: ValueCounts, min_count: int, max_rows: int | None = None) -> None:
        counts.merge()
        kept = (counts.counts >= min_count) & (counts.values != MISSING_CAT)
        self.values = counts.values[kept]
        self.hashed = max_rows is not None and FIRST_ROW + len(self.values) > max_rows
        self.num_rows = max_rows if self.hashed and max_rows else FIRST_ROW + len(self.values)

    def encode(self, values: I64) -> npt.NDArray[np.int32]:
        """Give the row of each value.

        Parameters
        ----------
        values : ndarray of int64
            Raw values.

        Returns
        -------
        ndarray of int32
            Rows of the table.
        """
        place = np.searchsorted(self.values, values)
        known = np.zeros(len(values), bool)
        inside = place < len(self.values)
        known[inside] = self.values[place[inside]] == values[inside]
        if self.hashed:
            place = _bucket(values, self.num_rows - FIRST_ROW)
        rows = np.where(known, place + FIRST_ROW, RARE_ROW)
        rows[values == MISSING_CAT] = MISSING_ROW
        return rows.astype(np.int32)
