"""Open the clicks of a run: generated ones, or files of any kind that is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mpembed.train.data.clicks import Clicks, Columns, DataError, Source
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.criteo_lines import COLUMNS as CRITEO_CELLS
from mpembed.train.data.files import check_regular, compression_of, expand, is_parquet
from mpembed.train.data.lines import first_line
from mpembed.train.data.options import DataOptions
from mpembed.train.data.parquet import ParquetTable
from mpembed.train.data.selection import Selection, select, select_again
from mpembed.train.data.synthetic import DEFAULT_ROWS, SyntheticSource
from mpembed.train.data.table_lines import DELIMITERS, find_delimiter, split_line
from mpembed.train.data.text_table import TextTable


class FileSource(Source, Protocol):
    """A source that may lack labels."""

    @property
    def has_labels(self) -> bool:
        """Whether there is a label."""


class JoinedFiles:
    """Several files of the same columns, one after the other.

    Parameters
    ----------
    files : sequence of FileSource
        At least two files, in order; the columns are those of the first.
    """

    def __init__(self, files: Sequence[FileSource]) -> None:
        self._files = files

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return sum(file.rows for file in self._files)

    @property
    def columns(self) -> Columns:
        """What the columns are."""
        return self._files[0].columns

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks."""
        for file in self._files:
            taken = min(file.rows, stop)
            if taken:
                yield from file.chunks(taken)
            stop -= taken

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        described = [file.describe() for file in self._files]
        names = [one["source"] for one in described]
        files = f"{names[0]} to {names[-1]} ({len(names)} files)"
        return {**described[0], "source": files, "rows": self.rows, "files": names}


def open_source(
    options: DataOptions, rows: int | None = None, columns: Columns | None = None
) -> Source:
    """Open the data of a run.

    Parameters
    ----------
    options : DataOptions
        Files and columns; without files the clicks are synthetic.
    rows : int, optional
        Use the first `rows` clicks only.
    columns : Columns, optional
        Those of a stored encoding: the same columns are taken, whatever the options name, and the
        label may be absent.

    Returns
    -------
    Source
        Raw clicks.

    Raises
    ------
    DataError
        If a file cannot be used; bad rows are found when they are read.
    """
    if not options.files:
        return SyntheticSource(rows or DEFAULT_ROWS)
    paths = expand(options.files)
    # The columns of a table are all named.
    criteo = not options.selects_columns if columns is None else not columns.names
    if criteo:
        way_out = "" if columns else ", or pass --categorical for other files"
        of_text = ("header", "delimiter", "list_separator")
        _refuse(options, of_text, f"are in Criteo's format; leave it out{way_out}")
    opened: list[FileSource] = []
    for path in paths:
        check_regular(path)
        left = None if rows is None else rows - sum(file.rows for file in opened)
        if left == 0:
            break
        opened.append(
            _open_criteo(path, left, columns is not None)
            if criteo
            else _open_table(path, left, options, columns, opened[0] if opened else None)
        )
        _check_alike(path, opened)
    if all(isinstance(file, ParquetTable) for file in opened):
        # With --header the names are in the files, as they are here.
        names = ["delimiter", "header"] if options.header is False else ["delimiter"]
        _refuse(options, names, "are all Parquet; leave it out")
    return opened[0] if len(opened) == 1 else JoinedFiles(opened)


def _refuse(options: DataOptions, names: Sequence[str], files: str) -> None:
    """Refuse options that would change nothing."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            option = "no-header" if value is False else name.replace("_", "-")
            raise DataError(f"--{option} is of no use: the files {files}")


def _check_alike(path: Path, opened: Sequence[FileSource]) -> None:
    first, last = opened[0], opened[-1]
    if last.has_labels != first.has_labels:
        raise DataError(f"{path}: the first file has labels and this one has none, or the reverse")
    if last.columns.bags and not first.columns.bags:
        raise DataError(f"{path}: a categorical has lists here and none in the first file")


def _open_criteo(path: Path, rows: int | None, label_may_be_absent: bool) -> CriteoFile:
    """Open a file in Criteo's format; say what it is where it has another one."""
    expected = (
        "the model was trained on Criteo's format"
        if label_may_be_absent
        else "pass --categorical and, where there are any, --dense"
    )
    if is_parquet(path):
        raise DataError(f"{path}: this is a Parquet file; {expected}")
    line = first_line(path, compression_of(path))
    delimiter = find_delimiter(line)
    cells = split_line(line, delimiter) if delimiter else []
    criteo_like = abs(len(cells) - CRITEO_CELLS) <= 2 and not cells[0].isidentifier()
    if delimiter and (delimiter != "\t" or not criteo_like):
        kind = f"{DELIMITERS[delimiter]}-separated"
        names = ", ".join(cells[:40])
        raise DataError(f"{path}: {kind}; {expected}; the first line has: {names}")
    has_labels = not (label_may_be_absent and line.count(b"\t") == CRITEO_CELLS - 2)
    return CriteoFile(path, rows, has_labels)


def _open_table(
    path: Path,
    rows: int | None,
    options: DataOptions,
    columns: Columns | None,
    first: FileSource | None,
) -> TextTable | ParquetTable:
    parquet = is_parquet(path)

    def choose(names: list[str], file: str) -> Selection:
        if columns is not None:
            positions = options.header is False and not parquet
            return select_again(names, columns, file, positions)
        if first is not None and tuple(names) != first.columns.names:
            raise DataError(
                f"{path}: the columns are not those of the first file: {_difference(names, first)}"
            )
        return select(names, options, file)

    stored = columns or (first.columns if first is not None else None)
    bags = stored is not None and stored.bags
    if parquet:
        return ParquetTable(path, rows, choose, options.list_separator, bags)
    # Only what the user says of the header makes names positions: `choose` keeps `options`.
    of_text = options
    if options.header is None and stored:
        of_text = replace(options, header=stored.header)
    return TextTable(path, rows, choose, of_text, bags)


def _difference(names: Sequence[str], first: FileSource) -> str:
    wanted = first.columns.names
    if len(names) != len(wanted):
        return f"{len(names)}, not {len(wanted)}"
    pairs = enumerate(zip(names, wanted, strict=True), 1)
    return next(
        f"column {place} is {name!r}, not {other!r}"
        for place, (name, other) in pairs
        if name != other
    )


def describe_source(source: Source) -> str:
    """Return one line that says what was recognised; empty for synthetic clicks."""
    described = source.describe()
    return f"{described['source']}: {described['format']}" if "format" in described else ""


def source_note(source: Source) -> str:
    """Return one line on what may be wrong with what has been read; empty if nothing is."""
    described = source.describe()
    return f"{described['source']}: {described['note']}" if "note" in described else ""
