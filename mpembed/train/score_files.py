"""Files of scores, CSV or Parquet, written row by row: whole or not at all."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mpembed._files.replacement import ReplacementFile
from mpembed._files.targets import is_special
from mpembed.train.data.options import OptionError

SUFFIXES = (".csv", ".parquet")
COLUMN = "score"
F32 = npt.NDArray[np.float32]


class _Sink(io.RawIOBase):
    """Lets pyarrow write to a `ReplacementFile`."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._place = file, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        written = memoryview(data).nbytes
        self._place += written
        return written

    def tell(self) -> int:
        return self._place


class ScoreFile:
    """Writes the column ``score``; a context manager that puts the file in its place at its end.

    Parameters
    ----------
    path : Path
        The file, whose suffix chooses the format. A device or a pipe gets CSV as it comes.

    Raises
    ------
    OptionError
        If its suffix is another one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._special = path, is_special(path)
        self._is_csv = path.suffix.lower() != ".parquet"
        if not self._special and path.suffix.lower() not in SUFFIXES:
            raise OptionError(f"--out {path}: the name must end in {' or '.join(SUFFIXES)}")

    def __enter__(self) -> ScoreFile:
        with ExitStack() as stack:
            opened: Any = self._path.open("wb") if self._special else ReplacementFile(self._path)
            self._file = stack.enter_context(opened)
            if self._is_csv:
                self._file.write(f"{COLUMN}\n".encode())
            else:
                schema = pa.schema([(COLUMN, pa.float32())])
                self._parquet = stack.enter_context(pq.ParquetWriter(_Sink(self._file), schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    def write(self, scores: F32) -> None:
        """Write the scores of some more rows."""
        if self._is_csv:
            self._file.write("".join(f"{one:.9g}\n" for one in scores.tolist()).encode())
        else:
            self._parquet.write_table(pa.table({COLUMN: scores}))
