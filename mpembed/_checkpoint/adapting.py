"""Fills a collection from a checkpoint with other settings: what fits is kept bit for bit."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings.device import Stream
from mpembed._checkpoint.changes import states_of
from mpembed._checkpoint.state_changes import kept_states, report_states, started_late
from mpembed._checkpoint.tensor_file import Places, nothing, one_place
from mpembed._checkpoint.versions import Saved
from mpembed._collection.records import StoredArray
from mpembed._collection.row_states import decoded, table_states
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState, Counters
from mpembed._collection.state_checks import first_unstorable
from mpembed._collection.storage import table_fields
from mpembed._collection.table_writer import TableWriter
from mpembed.load_report import LoadReport
from mpembed.ops import dequantize
from mpembed.optim import Optimizer, State

_CHUNK = 1 << 25  # bytes of an array at a time
Values = npt.NDArray[Any]
#: Reads an array of the file, by its name there, into places.
Read = Callable[[str, Places], None]


def pieces(
    shape: tuple[int, ...],
    dtype: Any,
    consume: Callable[[int, Values], None] | None = None,
    widest: int = 0,
) -> Places:
    """Yield memory for pieces of an array; `consume` gets where each begins, and its values.

    `widest`: the bytes that `consume` makes of an element, if they are more than it has.
    """
    each = max(1, _CHUNK // max(1, widest, math.prod(shape[1:]) * np.dtype(dtype).itemsize))
    for begin in range(0, shape[0], each):
        values = np.empty((min(each, shape[0] - begin), *shape[1:]), dtype)
        yield values, nothing if consume is None else partial(consume, begin, values)


class Adapter:
    """A collection on its way from what a checkpoint holds.

    Parameters
    ----------
    state : CollectionState
        With the new settings; its counters are the checkpoint's, its rows undefined.
    saved : Saved
        What the checkpoint holds.
    read : callable
        Reads one of its arrays; raises ValueError if it is damaged.
    on : Stream
        The turn's.

    Attributes
    ----------
    converted_rows : set of int
        Tables whose rows are now in another format.
    report : LoadReport
        What became of what.
    """

    def __init__(self, state: CollectionState, saved: Saved, read: Read, on: Stream) -> None:
        self.state, self.saved, self.on = state, saved, on
        self.converted_rows: set[int] = set()
        self.report = LoadReport()
        self._read = read
        self._taken: int | None = None
        self._writers: dict[int, TableWriter] = {}
        self._later: dict[int, npt.NDArray[np.int64]] = {}
        if not saved.current:
            self.report.converted.append(f"the layout of version {saved.version}")

    def read(self, name: str, consume: Callable[[int, Values], None], widest: int = 0) -> None:
        """Read an array by pieces."""
        file = self.saved.names[name]
        dtype, shape = self.saved.arrays[file]
        self._read(file, pieces(shape, dtype, consume, widest))

    def whole(self, name: str) -> Values | None:
        """Return all of an array; None if the checkpoint has none."""
        file = self.saved.names.get(name)
        if file is None:
            return None
        dtype, shape = self.saved.arrays[file]
        found = np.empty(shape, dtype)
        self._read(file, one_place(found))
        return found

    def kept_rows(self, table: int) -> int:
        """Return how many of a table's rows stay."""
        tables = self.saved.settings.tables[table], self.state.settings.tables[table]
        return min(one.num_embeddings for one in tables)

    # ---- tables ---------------------------------------------------------------------------------

    def fill_tables(self, written_back: dict[int, npt.NDArray[np.int64]]) -> None:
        """Fill the rows and states of all tables.

        Rows that a cache writes back later are not rounded before: no row is written twice in one
        step.
        """
        self._later = written_back
        for table in range(len(self.state.settings.tables)):
            self._fill_rows(table)
            self._fill_states(table)

    def _fill_rows(self, table: int) -> None:
        old, new = self.saved.settings.tables[table], self.state.settings.tables[table]
        name, n = f"table {new.name!r}", self.kept_rows(table)
        stored = self.state.storage.tables[table].arrays()[0]
        if old.precision == new.precision:
            self._copy(f"table.{new.name}.rows", stored, n)
            self.report.kept.append(f"{name}: {n:,} rows")
        else:
            convert = partial(self._convert_rows, table)
            self.read(f"table.{new.name}.rows", convert, 4 * new.embedding_dim)
            self.converted_rows.add(table)
            self.report.converted.append(
                f"{name}: {n:,} rows from {old.precision} to {new.precision}"
            )
        if new.num_embeddings > n:
            # No write: they are those of step 0.
            TableWriter(self.state.storage, table, 0, self.on).draw_initial_rows(n)
            self.report.added.append(f"{name}: {new.num_embeddings - n:,} initial rows")
        if old.num_embeddings > n:
            self.report.dropped.append(f"{name}: {old.num_embeddings - n:,} rows")

    def _copy(self, name: str, stored: StoredArray, n: int) -> None:
        """Keep the first n elements of an array as they are."""

        def keep(begin: int, values: Values) -> None:
            stored.write(begin, values[: max(0, n - begin)], self.on)

        self.read(name, keep)

    def _convert_rows(self, table: int, begin: int, packed: Values) -> None:
        old, ids = self.saved.settings.tables[table], self._now(table, begin, len(packed))
        if len(ids) > 0:
            values = dequantize(packed[ids - begin], old.precision, old.embedding_dim)
            self.write_rows(table, ids, values)

    def _kept(self, table: int, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Return which of `count` rows stay."""
        return np.arange(begin, max(begin, min(begin + count, self.kept_rows(table))))

    def _now(self, table: int, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Return which of `count` rows stay and are not written later."""
        ids = self._kept(table, begin, count)
        later = self._later.get(table)
        return ids if later is None or later.size == 0 else np.setdiff1d(ids, later)

    def _fill_states(self, table: int) -> None:
        settings, n = self.state.settings, self.kept_rows(table)
        old, new = self.saved.settings.optimizers[table], settings.optimizers[table]
        name, before = settings.tables[table].name, states_of(old)
        stored = self.state.storage.tables[table].arrays()[1:]
        arrays = dict(zip(states_of(new), stored, strict=True))
        for key in kept_states(old, new):
            precision = before[key][1]
            if precision == states_of(new)[key][1]:
                self._copy(f"table.{name}.{key}", arrays[key], n)
            else:
                convert = partial(self._convert_state, table, key, precision)
                self.read(f"table.{name}.{key}", convert)
        report_states(self.report, name, old, new)

    def _convert_state(
        self, table: int, key: str, precision: str, begin: int, stored: Values
    ) -> None:
        # Where slots hold no states, a row that is written later has them from the table.
        choose = self._now if self.saved.slot_states else self._kept
        ids = choose(table, begin, len(stored))
        whole = table_states(self.state, table, ids, self.on)
        whole[key] = decoded(stored[ids - begin], precision)
        self.write_states(table, ids, whole)

    # ---- writing --------------------------------------------------------------------------------

    def _step(self) -> int:
        """Return the write step of all that is written; the first write takes it."""
        if self._taken is None:
            self._taken = self.state.engine.next_step(self.on)
        return self._taken

    def writer(self, table: int) -> TableWriter:
        """Return what writes to a table's memory."""
        if table not in self._writers:
            storage = self.state.storage
            self._writers[table] = TableWriter(storage, table, self._step(), self.on)
        return self._writers[table]

    def write_rows(self, table: int, ids: npt.NDArray[np.int64], rows: Values) -> None:
        """Round rows into their table."""
        self.refuse_unstorable(table, ids, rows)
        self.writer(table).write_rows(ids, rows)

    def write_states(
        self, table: int, ids: npt.NDArray[np.int64], states: dict[str, Values]
    ) -> None:
        """Round all states of rows into their table."""
        self.writer(table).write_states(ids, states)

    def refuse_unstorable(self, table: int, ids: npt.NDArray[np.int64], rows: Values) -> None:
        """Raise ValueError for rows that their table's format cannot store."""
        config = self.state.settings.tables[table]
        wrong = first_unstorable(rows, config.precision)
        if wrong is not None:
            raise ValueError(
                f"table {config.name!r}: row {ids[wrong]} is not finite or exceeds the range of "
                f"{config.precision}; load the table with another precision"
            )

    # ---- the rest -------------------------------------------------------------------------------

    def fill_counts(self) -> None:
        """Keep the statistics, and what rounding adds where rows are stored as they were."""
        storage = self.state.storage
        self._copy("stats", StoredArray.of(storage.stats), len(storage.configs))
        noise = self.whole("noise")
        if noise is None:
            self.report.added.append("measurements of rounding")
            return
        rounds = self.saved.settings.rounding != self.state.settings.rounding
        anew = list(range(len(noise))) if rounds else sorted(self.converted_rows)
        noise[anew] = 0
        StoredArray.of(storage.noise).write(0, noise, self.on)
        if anew:
            names = ", ".join(repr(storage.configs[table].name) for table in anew)
            self.report.changed.append(f"rounding is measured anew for {names}")

    def finish(self) -> None:
        """Take the write step of what was written; forget updates that no state has seen."""
        counters = self.state.counters(self.on)
        step = counters.step if self._taken is None else self._taken
        updates = counters.updates
        if updates > 0 and self._all_states_are_new():
            updates = 0
            self.report.started.append("the count of updates")
        for table, (old, new) in zip(self.state.settings.tables, self._optimizers(), strict=True):
            late = started_late(table.name, old, new, updates)
            self.report.started.extend([] if late is None else [late])
        self.state.set_counters(Counters(step, updates), self.on)

    def _optimizers(self) -> list[tuple[Optimizer | None, Optimizer | None]]:
        """Return each table's optimizer in the checkpoint and now."""
        before, now = self.saved.settings.optimizers, self.state.settings.optimizers
        return list(zip(before, now, strict=True))

    def _all_states_are_new(self) -> bool:
        """Whether tables have states, and none is of the checkpoint."""
        pairs = [(old, new) for old, new in self._optimizers() if states_of(new)]
        return bool(pairs) and not any(kept_states(old, new) for old, new in pairs)


def initial_values(state: State, table: int, settings: Settings) -> np.float32:
    """Return what a state starts with, as it is read."""
    fields = table_fields(settings.tables[table], settings.optimizers[table])
    field = next(field for field in fields[1:] if field.name == state.name)
    value: np.float32 = decoded(np.full(1, field.initial, field.dtype), state.precision)[0]
    return value
