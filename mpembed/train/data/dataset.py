"""Clicks as a model takes them: split in time order, integers as logarithms, values as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import MISSING_INT, NUM_CATS, Clicks, DataError, Source, reblock
from mpembed.train.data.vocabulary import ValueCounts, Vocabulary

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class Block:
    """Encoded clicks of one part of the data.

    Attributes
    ----------
    part : str
        "train", "validation" or "test".
    labels : ndarray of float32, shape (n,)
        Zeros and ones.
    dense : ndarray of float32, shape (n, 13)
        Logarithms of the integers.
    ids : ndarray of int32, shape (26, n)
        Rows of the tables.
    """

    part: str
    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Block:
        ids = np.ascontiguousarray(self.ids[:, rows])
        return Block(self.part, self.labels[rows], self.dense[rows], ids)

    def batches(self, size: int) -> Iterator[Block]:
        """Cut the block into batches.

        Parameters
        ----------
        size : int
            Rows of a batch; the last one may have fewer.

        Yields
        ------
        Block
            Batches whose arrays are contiguous.
        """
        for start in range(0, len(self), size):
            yield self[start : start + size]


def split_ends(rows: int) -> dict[str, int]:
    """Split in time order: six sevenths to train, the rest halved.

    Parameters
    ----------
    rows : int
        Number of rows.

    Returns
    -------
    dict of str to int
        Where each part ends, in order.
    """
    train = rows * 6 // 7
    return {TRAIN: train, VALIDATION: train + (rows - train) // 2, TEST: rows}


def dense_features(ints: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.float32]:
    """Take logarithms of integers.

    Parameters
    ----------
    ints : ndarray of int64, shape (13, n)
        Raw integers.
    shift : int
        2 for ``log(x + 2)`` of x no less than -1; 1 for ``log(x + 1)`` of x no less than 0.

    Returns
    -------
    ndarray of float32, shape (n, 13)
        The features, 0 where the integer is missing.
    """
    lowest = 1 - shift
    values = np.where(ints == MISSING_INT, lowest, np.maximum(ints, lowest))
    return np.ascontiguousarray(np.log(values.astype(np.float64) + shift).T.astype(np.float32))


class Dataset:
    """Encoded clicks, streamed from their source each time.

    Parameters
    ----------
    source : Source
        Raw clicks.
    min_count : int
        Occurrences in the training part that earn a value its own row.
    max_rows : int, optional
        Most rows of a table.
    log_shift : int
        See :func:`dense_features`.

    Raises
    ------
    DataError
        If there are too few rows for three parts.
    """

    def __init__(
        self, source: Source, min_count: int = 1, max_rows: int | None = None, log_shift: int = 2
    ) -> None:
        self.source = source
        self.ends = split_ends(source.rows)
        if not 0 < self.ends[TRAIN] < self.ends[VALIDATION] < self.ends[TEST]:
            raise DataError(
                f"{source.describe()['source']}: {source.rows} rows are too few to split into "
                "training, validation and test parts; at least 8 are needed"
            )
        self._log_shift = log_shift
        counts = [ValueCounts() for _ in range(NUM_CATS)]
        done = 0
        # The whole source is read, so that a bad line is found before hours of training. But only
        # the training part may decide which values have rows: the other parts are its future.
        for chunk in source.chunks(source.rows):
            seen = chunk.cats[:, : max(0, self.ends[TRAIN] - done)]
            for column, values in zip(counts, seen, strict=True):
                column.add(values)
            done += len(chunk)
        self.vocabularies = [Vocabulary(c, min_count, max_rows) for c in counts]

    @property
    def table_rows(self) -> list[int]:
        """Rows of each table."""
        return [v.num_rows for v in self.vocabularies]

    def _encode(self, part: str, clicks: Clicks) -> Block:
        ids = [v.encode(c) for v, c in zip(self.vocabularies, clicks.cats, strict=True)]
        dense = dense_features(clicks.ints, self._log_shift)
        return Block(part, clicks.labels.astype(np.float32), dense, np.stack(ids))

    def blocks(self, size: int, last: str = TEST) -> Iterator[Block]:
        """Stream the parts in time order.

        Parameters
        ----------
        size : int
            Rows of a block; the last block of a part may have fewer.
        last : str, optional
            Part to stop after.

        Yields
        ------
        Block
            Blocks of one part each.
        """
        plan = list(self._plan(size, last))
        lengths = (length for _, length in plan)
        clicks = reblock(self.source.chunks(self.ends[last]), lengths)
        for (part, _), block in zip(plan, clicks, strict=True):
            yield self._encode(part, block)

    def _plan(self, size: int, last: str) -> Iterator[tuple[str, int]]:
        start = 0
        for part, end in self.ends.items():
            for at in range(start, end, size):
                yield part, min(size, end - at)
            start = end
            if part == last:
                return
