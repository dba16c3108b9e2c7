"""Where ``weight`` of a module comes from, and where writes to it go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpembed.collection import collection_state
from mpembed.torch._exchange import current_stream
from mpembed.torch._module_calls import ModuleCalls
from mpembed.torch._parameter import TableParameter
from mpembed.torch._state_dict import writes_to_entries
from mpembed.torch._whole_tables import check_weight, read_table, write_table

WAY_OUT = (
    "which does not reach the table: write to weight or weight.data by an in-place method, or call "
    "tables.set_rows"
)


class AllRows:
    """All rows of a table as they were at some time.

    Attributes
    ----------
    values : Tensor (E, D)
        The rows.
    at : tuple
        Counts of what changed the table before.
    """

    __slots__ = ("_version", "at", "values")

    def __init__(self, values: Tensor, at: tuple[int, int, int]) -> None:
        self.values, self.at, self._version = values, at, values._version

    @property
    def written(self) -> bool:
        """Whether somebody wrote to the values in a way that the table does not see."""
        return self.values._version != self._version


class WeightSource:
    """Where a tensor of all rows comes from, and where writes to it go.

    Parameters
    ----------
    calls : ModuleCalls
        Of a module with one table.
    parameter : TableParameter
        The module's.
    """

    def __init__(self, calls: ModuleCalls, parameter: TableParameter) -> None:
        self.calls, self.parameter = calls, parameter
        (self._table,) = calls.collection.tables
        self._state = collection_state(calls.collection)
        self._known: AllRows | None = None

    def forget(self) -> None:
        """Read the rows anew at the next call."""
        self._known = None

    def check(self) -> None:
        """Raise RuntimeError if somebody wrote to the rows in a way that the table does not see.

        Rows that have changed since they were read are forgotten.
        """
        known = self._known
        if known is None:
            return
        if known.written or known.at != self.now:
            self._known = None
        if known.written:
            raise RuntimeError(
                f"a table's weight was written to through weight.detach(), {WAY_OUT}"
            )

    @property
    def now(self) -> tuple[int, int, int]:
        """Counts of what has changed the table so far."""
        collection = self.calls.collection
        return collection.step, self._state.restores, writes_to_entries(collection)

    def read(self, dtype: torch.dtype) -> AllRows:
        """Return all rows as they are now; the same memory until something is written."""
        self.check()
        known = self._known
        if known is None or known.values.dtype != dtype:
            self._known = known = None  # before the next one is made
            now = self.now
            self._known = known = AllRows(
                read_table(self.calls.collection, self._table, dtype), now
            )
        return known

    def set_rows(self, rows: Tensor, values: Tensor) -> None:
        """Set some rows; ValueError for values that cannot be stored."""
        collection, plain = self.calls.collection, values.to(torch.float32).contiguous()
        collection.set_rows(self._table.name, rows, plain, stream=current_stream(plain.device))
        self.forget()

    def set_all(self, values: Any) -> None:
        """Set every row; ValueError before anything changes."""
        check_weight("weight", self._table, values)
        write_table(self.calls.collection, self._table, values)
        self.forget()
