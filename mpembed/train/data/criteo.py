"""Stream click logs in Criteo's format.

A line holds a label, 13 integers and 26 hexadecimal categoricals, separated by tabs; an empty cell
is a missing value. :mod:`mpembed.train.data.criteo_lines` has the exact rule.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpembed.train.data.clicks import CRITEO_COLUMNS, Clicks, Columns, DataError
from mpembed.train.data.criteo_lines import first_fault
from mpembed.train.data.criteo_parse import BadBlockError, parse_block
from mpembed.train.data.files import check_regular, compression_of
from mpembed.train.data.lines import line_blocks

# Fewer lines cannot be split into three parts. A fault of a line is reported before that.
_FEW_LINES = 8


class CriteoFile:
    """A file of clicks.

    Parameters
    ----------
    path : path-like
        The file, plain, gzip or zstd (recognised by its first bytes).
    max_rows : int, optional
        Use the first `max_rows` rows only; what follows them is not read.
    labels : bool
        False for lines without a label: 39 cells.

    Raises
    ------
    DataError
        If the file is missing, empty, not a regular file or cannot be decompressed, or if a line
        breaks the rule; bad cells are found when their block is read.
    """

    def __init__(self, path: str | Path, max_rows: int | None = None, labels: bool = True) -> None:
        self.path = Path(path)
        check_regular(self.path)
        self._compression, self._labels = compression_of(self.path), labels
        stop = sys.maxsize if max_rows is None else max_rows
        self._rows = sum(lines for _, lines in line_blocks(self.path, self._compression, stop))
        if not self._rows:
            raise DataError(f"{self.path}: the file is empty")
        if self._rows < _FEW_LINES:
            # They may really be bad lines: lines that end with CR alone count as one line.
            for _ in self.chunks(self._rows):
                pass

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return self._rows

    @property
    def has_labels(self) -> bool:
        """Whether lines start with a label."""
        return self._labels

    @property
    def columns(self) -> Columns:
        """What the columns are."""
        return CRITEO_COLUMNS

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        return {"source": self.path.name, "rows": self._rows, "format": self._format()}

    def _format(self) -> str:
        packed = f", {self._compression}" if self._compression else ""
        return f"Criteo's format{'' if self._labels else ' without labels'}{packed}"

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks.

        Parameters
        ----------
        stop : int
            Number of clicks wanted, at most `rows`.

        Yields
        ------
        Clicks
            The clicks of one block of the file.
        """
        done = 0
        for block, lines in line_blocks(self.path, self._compression, stop):
            try:
                yield parse_block(block, lines, self._labels)
            except BadBlockError as error:
                raise self._bad_line(block, done, error) from None
            done += lines
        if done < stop:
            raise DataError(
                f"{self.path}: line {done + 1}: the file ended, {stop} lines were expected"
            )

    def _bad_line(self, block: bytes, done: int, error: BadBlockError) -> DataError:
        found = first_fault(block, self._labels)
        if found is None:  # the rule holds; pyarrow may still hit a limit of its own
            return DataError(f"{self.path}: after line {done}: cannot be parsed: {error}")
        number, fault = found
        return DataError(f"{self.path}: line {done + number + 1}: {fault}")
