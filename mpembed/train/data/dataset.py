"""Clicks as a model takes them: split in time order, integers as logarithms, values as rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mpembed.train.data.clicks import DataError, Source, reblock
from mpembed.train.data.encoding import Block, Encoding
from mpembed.train.data.features import DenseStatistics, as_floats
from mpembed.train.data.vocabulary import ValueCounts, Vocabulary

TRAIN, VALIDATION, TEST = "train", "validation", "test"


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
        See :func:`mpembed.train.data.features.dense_features`.
    transform : str
        How numbers become features, one of `mpembed.train.data.options.TRANSFORMS`. In Criteo's
        format they are integers, so "auto" is the logarithm.

    Attributes
    ----------
    encoding : Encoding
        How clicks are encoded, for use by another process too.
    ends : dict of str to int
        Where each part ends.

    Raises
    ------
    DataError
        If there are too few rows for three parts.
    """

    def __init__(
        self,
        source: Source,
        min_count: int = 1,
        max_rows: int | None = None,
        log_shift: int = 2,
        transform: str = "auto",
    ) -> None:
        self.source = source
        self.ends = split_ends(source.rows)
        if not 0 < self.ends[TRAIN] < self.ends[VALIDATION] < self.ends[TEST]:
            raise DataError(
                f"{source.describe()['source']}: {source.rows} rows are too few to split into "
                "training, validation and test parts; at least 8 are needed"
            )
        columns = source.columns
        counts = [ValueCounts() for _ in columns.categorical]
        statistics = DenseStatistics(len(columns.dense))
        done = 0
        # The whole source is read, so that a bad line is found before hours of training. But only
        # the training part may decide which values have rows: the other parts are its future.
        for chunk in source.chunks(source.rows):
            seen = chunk[: max(0, self.ends[TRAIN] - done)]
            done += len(chunk)
            if not len(seen):  # an empty view would still hold the chunk's memory
                continue
            for column, values in zip(counts, seen.values(), strict=True):
                column.add(values)
            # The logarithm needs no mean, and integers get it by default.
            if transform == "standard" or (transform == "auto" and seen.dense.dtype == np.float64):
                statistics.add(as_floats(seen.dense))
        transforms = statistics.transforms(transform, log_shift)
        vocabularies = [Vocabulary(c, min_count, max_rows) for c in counts]
        self.encoding = Encoding(columns, transforms, vocabularies)

    @property
    def vocabularies(self) -> list[Vocabulary]:
        """The rows of each table."""
        return list(self.encoding.vocabularies)

    @property
    def table_rows(self) -> list[int]:
        """Rows of each table."""
        return self.encoding.table_rows

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
            yield self.encoding.encode(part, block)

    def _plan(self, size: int, last: str) -> Iterator[tuple[str, int]]:
        start = 0
        for part, end in self.ends.items():
            for at in range(start, end, size):
                yield part, min(size, end - at)
            start = end
            if part == last:
                return
