"""Stream click logs in Criteo's format.

A line holds a label, 13 integers and 26 hexadecimal categoricals, separated by tabs; an empty cell
is a missing value. :mod:`mpembed.train.data.criteo_lines` has the exact rule. The file may be gzip.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpembed.train.data.clicks import CRITEO_COLUMNS, Clicks, Columns, DataError
from mpembed.train.data.criteo_lines import first_fault, line_blocks
from mpembed.train.data.criteo_parse import BadBlockError, parse_block

_GZIP_MAGIC = b"\x1f\x8b"
# Fewer lines cannot be split into three parts. A fault of a line is reported before that.
_FEW_LINES = 8


class CriteoFile:
    """A file of clicks.

    Parameters
    ----------
    path : path-like
        The file, plain or gzip (recognised by its first bytes).
    max_rows : int, optional
        Use the first `max_rows` rows only; what follows them is not read.

    Raises
    ------
    DataError
        If the file is missing, empty, not a regular file or damaged gzip, or if a line breaks the
        rule; bad cells are found when their block is read.
    """

    def __init__(self, path: str | Path, max_rows: int | None = None) -> None:
        self.path = Path(path)
        self._is_gzip = self._check_start()
        stop = sys.maxsize if max_rows is None else max_rows
        self._rows = sum(lines for _, lines in line_blocks(self.path, self._is_gzip, stop))
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
    def columns(self) -> Columns:
        """What the columns are."""
        return CRITEO_COLUMNS

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        return {"source": self.path.name, "rows": self._rows}

    def _check_start(self) -> bool:
        """Return whether the file is gzip; refuse what cannot be read."""
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise DataError(f"{self.path}: is a directory, not a file of clicks")
            if not stat.S_ISREG(mode):
                raise DataError(
                    f"{self.path}: is not a regular file; clicks are read several times, which a "
                    "pipe or a device does not allow, so copy them to a file first"
                )
            with self.path.open("rb") as file:
                is_gzip = file.read(2) == _GZIP_MAGIC
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        if self.path.suffix == ".gz" and not is_gzip:
            raise DataError(f"{self.path}: not gzip data, though the name ends in .gz")
        return is_gzip

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
        for block, lines in line_blocks(self.path, self._is_gzip, stop):
            try:
                clicks = parse_block(block, lines)
            except BadBlockError as error:
                raise self._bad_line(block, done, error) from None
            yield clicks
            done += lines
        if done < stop:
            raise DataError(
                f"{self.path}: line {done + 1}: the file ended, {stop} lines were expected"
            )

    def _bad_line(self, block: bytes, done: int, error: BadBlockError) -> DataError:
        found = first_fault(block)
        if found is None:  # the rule holds; pyarrow may still hit a limit of its own
            return DataError(f"{self.path}: after line {done}: cannot be parsed: {error}")
        number, fault = found
        return DataError(f"{self.path}: line {done + number + 1}: {fault}")
