"""Stream clicks from Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpembed.train.data.arrow_columns import (
    BadValueError,
    is_categorical,
    is_label,
    is_list,
    is_number,
)
from mpembed.train.data.clicks import Clicks, DataError
from mpembed.train.data.selection import Selection
from mpembed.train.data.table import describe_columns, first_hint, make_columns, noted, to_clicks

_BATCH_ROWS = 16_384
# Column chunks are read through a buffer of this size, not as a whole.
_BUFFER_BYTES = 1 << 20
#: Whether an option takes columns of a type, and what it takes.
_TAKES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "dense": (is_number, "numbers"),
    "categorical": (is_categorical, "strings, integers, booleans or lists of them"),
    "label": (is_label, "0 and 1, or false and true"),
}


class ParquetTable:
    """A Parquet file of clicks.

    Parameters
    ----------
    path : Path
        A regular file.
    max_rows : int or None
        Use the first `max_rows` rows only.
    choose : callable
        Gives the selection from all names and what messages call the file.
    separator : str or None
        What separates the values in a categorical string, if anything does.
    bags : bool
        Whether categoricals are lists in any case.

    Raises
    ------
    DataError
        If the file is damaged, or a chosen column is not there or has a type that cannot be used.
    """

    def __init__(
        self,
        path: Path,
        max_rows: int | None,
        choose: Callable[[list[str], str], Selection],
        separator: str | None,
        bags: bool = False,
    ) -> None:
        self.path = path
        with self._open() as file:
            schema, total = file.schema_arrow, file.metadata.num_rows
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{path}: this is a Parquet file with several columns of one name")
        self._rows = total if max_rows is None else min(total, max_rows)
        if not self._rows:
            raise DataError(f"{path}: the file has no rows")
        self._names = schema.names
        self._selection = choose(schema.names, f"{path}: this is a Parquet file")
        self._check_types(schema)
        self._separator = separator
        bags = bags or separator is not None
        lists = any(is_list(schema.field(place).type) for place in self._selection.categorical)
        self.columns = make_columns(self._selection, bags or lists, True)
        self._hint: str | None = None  # before any rows are read

    def _open(self) -> Any:
        make: Any = pq.ParquetFile  # has no types
        try:
            return make(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False, memory_map=False)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(0, error) from None

    def _damaged(self, done: int, error: Exception) -> DataError:
        text = " ".join(str(error).split())
        return DataError(f"{self.path}: row {done + 1}: the Parquet data cannot be read: {text}")

    def _check_types(self, schema: pa.Schema) -> None:
        label = self._selection.label
        chosen = {
            "dense": self._selection.dense,
            "categorical": self._selection.categorical,
            "label": () if label is None else (label,),
        }
        for option, places in chosen.items():
            fits, wanted = _TAKES[option]
            for field in map(schema.field, places):
                if not fits(field.type):
                    raise DataError(
                        f"{self.path}: column {field.name!r} is of type {field.type}; --{option} "
                        f"takes {wanted}"
                    )

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return int(self._rows)

    @property
    def has_labels(self) -> bool:
        """Whether there is a label."""
        return self._selection.label is not None

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        what = describe_columns(self.columns, self.has_labels)
        described = {"source": self.path.name, "rows": self._rows, "format": f"Parquet; {what}"}
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
            The clicks of one batch.
        """
        done = 0
        with self._open() as file:
            for batch in self._batches(file):
                taken = batch.slice(0, stop - done)
                places = self._selection.places
                found = {place: taken.column(self._names[place]) for place in places}
                if self._hint is None:
                    self._hint = first_hint(found, self._selection, self.columns, self._separator)
                try:
                    yield to_clicks(
                        found, len(taken), self._selection, self.columns, self._separator
                    )
                except BadValueError as error:
                    number = done + error.row + 1
                    raise DataError(f"{self.path}: row {number}: {error}") from None
                done += len(taken)
                if done == stop:
                    return
        raise DataError(f"{self.path}: row {done + 1}: the file ended, {stop} rows were expected")

    def _batches(self, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        names = [self._names[place] for place in self._selection.places]
        batches = file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False)
        done = 0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(done, error) from None
            yield batch
            done += len(batch)
