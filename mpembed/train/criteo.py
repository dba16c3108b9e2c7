"""Stream click logs in Criteo's format.

A line holds a label, 13 integers and 26 hexadecimal categoricals with tabs between; an empty field
is a missing value. The file may be gzip. Reading is pyarrow's; a file that it refuses is read
again, slowly, by :mod:`mpembed.train.criteo_lines` to name the line at fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from .clicks import MISSING_CAT, MISSING_INT, NUM_CATS, NUM_INTS, Clicks, DataError
from .criteo_lines import find_bad_line

_BLOCK_BYTES = 4 << 20
_NAMES = ["label"] + [f"I{i + 1}" for i in range(NUM_INTS)] + [f"C{i + 1}" for i in range(NUM_CATS)]
_GZIP_MAGIC = b"\x1f\x8b"

_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_NIBBLES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


class _BadCellError(Exception):
    """A cell is not what its column holds; the slow reader will say which."""


def _ints(column: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(column, MISSING_INT))


def _cats(column: pa.Array) -> npt.NDArray[np.int64]:
    """Convert up to eight hexadecimal digits a cell to numbers, empty cells to ``MISSING_CAT``."""
    lengths = np.asarray(pc.binary_length(column))
    if len(lengths) and lengths.max() > 8:
        raise _BadCellError
    # Padded to eight digits, the cells lie in the data buffer as a plain matrix.
    padded = pc.ascii_lpad(column, width=8, padding="0")
    text = np.frombuffer(padded.buffers()[2], np.uint8)
    start = int(np.frombuffer(padded.buffers()[1], np.int32)[padded.offset])
    digits = _NIBBLES[text[start : start + 8 * len(padded)].reshape(-1, 8)]
    if digits.max(initial=0) > 15:
        raise _BadCellError
    values = np.zeros(len(padded), np.int64)
    for place in range(8):
        values = values << 4 | digits[:, place]
    values[lengths == 0] = MISSING_CAT
    return values


def _clicks(batch: pa.RecordBatch) -> Clicks:
    labels = _ints(batch.column(0))
    if ((labels != 0) & (labels != 1)).any():
        raise _BadCellError
    return Clicks(
        labels,
        np.stack([_ints(batch.column(1 + i)) for i in range(NUM_INTS)]),
        np.stack([_cats(batch.column(1 + NUM_INTS + i)) for i in range(NUM_CATS)]),
    )


class CriteoFile:
    """A file of clicks.

    Parameters
    ----------
    path : path-like
        The file, plain or gzip (told by its first bytes).
    max_rows : int, optional
        Use the first `max_rows` rows only.

    Raises
    ------
    DataError
        If the file is missing, empty, a damaged gzip file, or a line of it is not of the format;
        bad cells are found when their chunk is read.
    """

    def __init__(self, path: str | Path, max_rows: int | None = None) -> None:
        self.path = Path(path)
        self._compression = self._check_start()
        self._rows = self._count(max_rows)
        if not self._rows:
            raise DataError(f"{self.path}: line 1: the file is empty")

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return self._rows

    def describe(self) -> dict[str, Any]:
        """Say what the data are, for the report."""
        return {"source": self.path.name, "rows": self._rows}

    def _check_start(self) -> str | None:
        if self.path.is_dir():
            raise DataError(f"{self.path}: is a directory, not a file of clicks")
        try:
            with self.path.open("rb") as file:
                is_gzip = file.read(2) == _GZIP_MAGIC
        except FileNotFoundError:
            raise DataError(f"{self.path}: line 1: no such file") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        if self.path.suffix == ".gz" and not is_gzip:
            raise DataError(f"{self.path}: line 1: not gzip data, though the name ends in .gz")
        return "gzip" if is_gzip else None

    def _open(self) -> pa.NativeFile:
        return pa.input_stream(str(self.path), compression=self._compression)

    def _count(self, max_rows: int | None) -> int:
        """Count lines, stopping at `max_rows`; this also finds a damaged gzip stream early."""
        lines, last = 0, b"\n"
        with self._open() as stream:
            while max_rows is None or lines < max_rows:
                try:
                    block = stream.read(_BLOCK_BYTES)
                except OSError as error:
                    raise self._damaged(error) from None
                if not block:
                    break
                lines += block.count(b"\n")
                last = block[-1:]
        lines += last != b"\n"
        return lines if max_rows is None else min(lines, max_rows)

    def _damaged(self, error: OSError) -> DataError:
        find_bad_line(self.path, self._compression is not None)
        return DataError(f"{self.path}: cannot be read: {error}")

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks.

        Parameters
        ----------
        stop : int
            Number of clicks wanted, at most `rows`.

        Yields
        ------
        Clicks
            As many as a block of the file holds.
        """
        done = 0
        try:
            with self._open() as stream:
                for batch in self._reader(stream):
                    wanted = batch.slice(0, stop - done)
                    yield _clicks(wanted)
                    done += len(wanted)
                    if done >= stop:
                        return
        except (pa.ArrowInvalid, _BadCellError, OSError) as error:
            find_bad_line(self.path, self._compression is not None, done)
            raise DataError(f"{self.path}: after line {done}: {error}") from None
        raise DataError(f"{self.path}: line {done + 1}: the file ended, {stop} lines were expected")

    def _reader(self, stream: pa.NativeFile) -> csv.CSVStreamingReader:
        types = dict.fromkeys(_NAMES[: 1 + NUM_INTS], pa.int64())
        types |= dict.fromkeys(_NAMES[1 + NUM_INTS :], pa.string())
        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(column_names=_NAMES, block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(
                delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=False
            ),
        )
