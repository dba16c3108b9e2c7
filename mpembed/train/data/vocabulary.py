"""The table row of each categorical value."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import MISSING_CAT, DataError
from mpembed.train.data.hashing import GOLDEN, mix
from mpembed.train.data.keys import hashed_numbers

#: Every table has a row for missing values and one that rare and unseen values share.
MISSING_ROW, RARE_ROW, FIRST_ROW = 0, 1, 2

I64 = npt.NDArray[np.int64]
_MERGE_VALUES = 1 << 18


def _bucket(values: I64, buckets: int) -> I64:
    """Hash values evenly to buckets with the finaliser of SplitMix64."""
    return (mix(values.astype(np.uint64) * GOLDEN) % np.uint64(buckets)).astype(np.int64)


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
        # A merge costs as much as all known values, so it waits for as many new ones.
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
        # Neither part holds a value twice, so indexed addition loses nothing.
        total[where[: len(self.counts)]] += self.counts
        total[where[len(self.counts) :]] += counts
        self.counts, self._pending, self._size = total, [], 0


class Vocabulary:
    """The rows of one table.

    Row 0 is for a missing value. Row 1 is for every value that the training part holds fewer than
    `min_count` times, or never. The others have a row each; if that makes more than `max_rows`
    rows, they share ``max_rows - 2`` rows by a hash.

    Parameters
    ----------
    counts : ValueCounts
        Values of the training part.
    min_count : int
        Occurrences that a value needs to have its own row.
    max_rows : int, optional
        Most rows the table may have, at least 3.
    """

    def __init__(self, counts: ValueCounts, min_count: int, max_rows: int | None = None) -> None:
        counts.merge()
        kept = (counts.counts >= min_count) & (counts.values != MISSING_CAT)
        self.values = counts.values[kept]
        self.hashed = max_rows is not None and FIRST_ROW + len(self.values) > max_rows
        self.num_rows = max_rows if self.hashed and max_rows else FIRST_ROW + len(self.values)

    @classmethod
    def restore(cls, values: I64, num_rows: int, hashed: bool) -> Vocabulary:
        """Make a vocabulary from what one had.

        Parameters
        ----------
        values : ndarray of int64
            Its `values`.
        num_rows : int
            Its `num_rows`.
        hashed : bool
            Whether values share rows by a hash.

        Returns
        -------
        Vocabulary
            It encodes as that one did.

        Raises
        ------
        DataError
            If the three cannot be those of a vocabulary.
        """
        if type(num_rows) is not int or type(hashed) is not bool:
            raise DataError(f"not a stored vocabulary: num_rows {num_rows!r}, hashed {hashed!r}")
        values = np.array(values)
        shaped = values.dtype == np.int64 and values.ndim == 1 and bool((np.diff(values) > 0).all())
        own_rows = num_rows == FIRST_ROW + len(values)
        if not shaped or not (
            FIRST_ROW < num_rows < FIRST_ROW + len(values) if hashed else own_rows
        ):
            raise DataError("not a stored vocabulary: its values or its number of rows are wrong")
        made = cls(ValueCounts(values, np.ones(len(values), np.int64)), 1)
        made.hashed, made.num_rows = hashed, num_rows
        return made

    def encode(self, values: I64) -> npt.NDArray[np.int32]:
        """Return the row of each value.

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
            place = _bucket(hashed_numbers(values), self.num_rows - FIRST_ROW)
        rows = np.where(known, place + FIRST_ROW, RARE_ROW)
        rows[values == MISSING_CAT] = MISSING_ROW
        return rows.astype(np.int32)
