"""Stream clicks from text files of any columns, such as CSV and TSV.

Lines end with LF or CR LF. A cell may be quoted by double quotes, which are doubled inside it; no
cell holds an end of a line, so that lines can be counted, cut into blocks and named in messages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from mpembed.train.data.arrow_columns import BadValueError, one_chunk, read_options
from mpembed.train.data.clicks import Clicks, DataError
from mpembed.train.data.files import compression_of
from mpembed.train.data.lines import first_line, line_blocks
from mpembed.train.data.options import DataOptions
from mpembed.train.data.selection import DEFAULT_LABEL, Selection, place_of, unique_names
from mpembed.train.data.table import describe_columns, first_hint, make_columns, noted, to_clicks
from mpembed.train.data.table_lines import (
    BOM,
    DELIMITERS,
    OPEN_QUOTE,
    BadLineError,
    check_lines,
    find_delimiter,
    first_failure,
    has_open_quote,
    split_line,
)

#: Texts of a missing number.
MISSING_NUMBERS = ["", "NA", "NaN", "nan", "N/A", "null", "NULL", "None", "\\N"]
_LABEL_TEXTS = re.compile(r"[01](\.0)?|true|false", re.IGNORECASE)


def _has_header(cells: list[str], options: DataOptions) -> bool:
    """Return whether a file's first line has names: its label column does not hold a label."""
    if options.header is not None:
        return options.header
    place = place_of(options.label or DEFAULT_LABEL, len(cells))
    return place is None or not _LABEL_TEXTS.fullmatch(cells[place])


class TextTable:
    """A text file of clicks.

    Parameters
    ----------
    path : Path
        A regular file, plain, gzip or zstd (recognised by its first bytes).
    max_rows : int or None
        Use the first `max_rows` rows only; what follows them is not read.
    choose : callable
        Gives the selection from all names and what messages call the file.
    options : DataOptions
        Delimiter, header and list separator.
    bags : bool
        Whether categoricals are lists in any case.

    Raises
    ------
    DataError
        If the file has no rows or cannot be decompressed, or a chosen column is not there.
    """

    def __init__(
        self,
        path: Path,
        max_rows: int | None,
        choose: Callable[[list[str], str], Selection],
        options: DataOptions,
        bags: bool = False,
    ) -> None:
        self.path = path
        self._compression = compression_of(path)
        first = first_line(path, self._compression)
        if not first.strip():
            raise DataError(f"{path}: the file is empty, or its first line is")
        delimiter = options.delimiter or find_delimiter(first)
        if delimiter is None:
            raise DataError(
                f"{path}: line 1 has no comma, tab, semicolon or bar between cells; pass "
                "--delimiter"
            )
        self._delimiter, self._separator = delimiter, options.list_separator
        self._check_first(first)
        cells = split_line(first, delimiter)
        self._header = _has_header(cells, options)
        if options.header is None and not self._header:
            self._check_not_numbered(cells)
        names = unique_names(cells) if self._header else [str(n + 1) for n in range(len(cells))]
        self._selection = choose(names, f"{path}: this is {self._separated()}")
        bags = bags or self._separator is not None
        self.columns = make_columns(self._selection, bags, self._header)
        self._hint: str | None = None  # before any rows are read
        stop = sys.maxsize if max_rows is None else max_rows + self._header
        lines = sum(n for _, n in line_blocks(path, self._compression, stop))
        self._rows = lines - self._header
        if not self._rows:
            raise DataError(f"{path}: the file has no rows after its header")

    def _check_first(self, line: bytes) -> None:
        try:
            check_lines(line)
            line.decode("utf-8")
        except BadLineError as error:
            raise DataError(f"{self.path}: line 1: {error}") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: line 1: is not UTF-8 text ({error.reason} at byte {error.start}); "
                "convert the file with iconv"
            ) from None

    def _check_not_numbered(self, cells: list[str]) -> None:
        """Refuse a first line that may be names, as columns without names get them from tools."""
        for first in (0, 1):
            if len(cells) > 2 and cells == [str(first + n) for n in range(len(cells))]:
                raise DataError(
                    f"{self.path}: line 1 counts from {first} to {cells[-1]}; pass --header if "
                    "these are the columns' names, --no-header if it is a row"
                )

    def _separated(self) -> str:
        return f"{DELIMITERS.get(self._delimiter, repr(self._delimiter))}-separated text"

    def _kind(self) -> str:
        packed = f", {self._compression}" if self._compression else ""
        return f"{self._separated()}, {'with' if self._header else 'without'} a header{packed}"

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return self._rows

    @property
    def has_labels(self) -> bool:
        """Whether there is a label."""
        return self._selection.label is not None

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        what = f"{self._kind()}; {describe_columns(self.columns, self.has_labels)}"
        described = {"source": self.path.name, "rows": self._rows, "format": what}
        return noted(described, self._hint)

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
        done = 0  # lines
        for block, lines in line_blocks(self.path, self._compression, stop + self._header):
            start, skipped = 0, 0
            if not done:
                start = len(BOM) if block.startswith(BOM) else 0
                if self._header:
                    start, skipped = block.index(b"\n") + 1, 1
            if lines > skipped:
                try:
                    yield self._parse(block[start:] if start else block, lines - skipped)
                except BadLineError as error:
                    number = done + skipped + error.line + 1
                    raise DataError(f"{self.path}: line {number}: {error}") from None
            done += lines
        if done - self._header < stop:
            raise DataError(
                f"{self.path}: line {done + 1}: the file ended, {stop} rows were expected"
            )

    def _parse(self, block: bytes, lines: int) -> Clicks:
        check_lines(block)
        try:
            return self._convert(block, lines)
        except (pa.ArrowInvalid, pa.ArrowCapacityError, BadValueError):
            number, line = first_failure(block, self._fails)
            raise BadLineError(number, self._explain(line)) from None

    def _is_open(self, line: bytes) -> bool:
        return b'"' in line and has_open_quote(line, self._delimiter.encode())

    def _fails(self, lines: bytes, number: int) -> bool:
        if any(self._is_open(line) for line in lines.splitlines()):
            return True  # alone, or before other lines, it may pass
        try:
            self._convert(lines, number)
        except (pa.ArrowInvalid, BadValueError):
            return True
        return False

    def _convert(self, block: bytes, lines: int) -> Clicks:
        names = [str(place) for place in range(len(self.columns.names))]
        types = dict.fromkeys(names, pa.binary())
        types |= {names[place]: pa.float64() for place in self._selection.dense}
        table = pyarrow.csv.read_csv(
            pa.BufferReader(block),
            read_options=read_options(block, names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._delimiter, ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=[names[place] for place in self._selection.places],
                null_values=MISSING_NUMBERS,
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
        last = block[block.rfind(b"\n", 0, len(block) - 1) + 1 :]
        if len(table) != lines or self._is_open(last):
            raise pa.ArrowInvalid("a quote is open at the end of a line")
        places = self._selection.places
        found = {place: one_chunk(table.column(names[place])) for place in places}
        if self._hint is None:
            self._hint = first_hint(found, self._selection, self.columns, self._separator)
        return to_clicks(found, lines, self._selection, self.columns, self._separator)

    def _explain(self, line: bytes) -> str:
        """Return what is wrong with a line."""
        if self._is_open(line):
            return OPEN_QUOTE
        try:
            self._convert(line, 1)
        except BadValueError as error:
            return str(error)
        except pa.ArrowInvalid:
            pass
        cells = split_line(line, self._delimiter)
        if len(cells) != len(self.columns.names):
            return f"{len(cells)} columns, {len(self.columns.names)} expected"
        for place, name in zip(self._selection.dense, self.columns.dense, strict=True):
            cell = cells[place].strip(" \t")
            if cell not in MISSING_NUMBERS and not _is_number(cell):
                shown = cell if len(cell) <= 24 else cell[:24] + "..."
                return f"column {name!r} holds {shown!r}, not a number; is it a --categorical?"
        return "cannot be parsed"


def _is_number(cell: str) -> bool:
    try:
        pa.array([cell]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
