"""Rows and states: the calls of a collection that read and set them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpembed._arguments import arrays, captures
from mpembed._bindings import array_ops
from mpembed._bindings.dlpack import refuse_moved, view, wait_until_computed
from mpembed._bindings.kernels import host_copy
from mpembed._bindings.view import require
from mpembed._collection import row_states
from mpembed._collection.base import CollectionBase
from mpembed._collection.export import export_rows


class RowCalls(CollectionBase):
    """What reads and sets single rows."""

    __slots__ = ()

    def flush(self, *, stream: Any = None) -> None:
        """Write every dirty cache row back to its table; the rows stay cached."""
        with self._calls.on_stream(stream, captures.waits("flush"), changes=True) as on:
            self._engine.raise_found(on)
            self._engine.flush(on)

    def rows(self, name: str, ids: Any, *, stream: Any = None) -> Any:
        """Return the current values of rows, cached or not, as float32 (len(ids), D)."""
        wait_until_computed(ids)
        with self._calls.on_stream(stream, captures.waits("rows")) as on:
            group, position = self._find(name)
            table, kernels = self._tables[group.plan.tables[position]], group.kernels
            self._engine.raise_found(on)
            checked = arrays.row_ids(table, view(ids, "ids", on), on)
            out = array_ops.result((len(checked), table.embedding_dim), np.float32, on)
            kernels.read_rows(kernels.keys(position, checked, on), view(out, "out", on), on)
            return out

    def set_rows(self, name: str, ids: Any, values: Any, *, stream: Any = None) -> None:
        """Set rows: a cached row in FP32; any other row is rounded into its table.

        Parameters
        ----------
        name : str
            The table.
        ids : int32, int64, uint32 or uint64 array (n,)
            Without duplicates.
        values : float32 array (n, D)
            Finite and within the precision's range. The optimizer's state does not change.
        """
        wait_until_computed(ids, values)
        with self._calls.on_stream(stream, captures.waits("set_rows"), changes=True) as on:
            group, position = self._find(name)
            table, kernels = self._tables[group.plan.tables[position]], group.kernels
            self._engine.raise_found(on)
            given, matrix = view(ids, "ids", on), view(values, "values", on)
            refuse_moved([given, matrix])
            checked = arrays.unique_row_ids(table, given, on)
            shape = len(checked), table.embedding_dim
            require(matrix, arrays.FLOAT, 2, shape)
            self._storage.refuse_own_memory(matrix)
            if on.device.synchronous:  # the caller's may change, as while a save is waited for
                matrix = view(host_copy(matrix, on, always=True), "values", on)
            arrays.storable(matrix, *shape, table.precision, "values", on)
            self._engine.write_rows(kernels, kernels.keys(position, checked, on), matrix, on)

    def state(self, name: str, ids: Any, *, stream: Any = None) -> dict[str, Any]:
        """Return the current states that the optimizer keeps for rows, cached or not, as float32.

        Returns
        -------
        dict of state name -> array
            (len(ids), D), or (len(ids),) for a state of one value a row. The names are those of
            ``emb.optimizers[name].states``; a frozen table and SGD have none.
        """
        wait_until_computed(ids)
        with self._calls.on_stream(stream, captures.waits("state"), holds=True) as on:
            group, position = self._find(name)
            self._engine.raise_found(on)
            table = self._tables[group.plan.tables[position]]
            checked = arrays.row_ids(table, view(ids, "ids", on), on)
            found = row_states.read_states(self._state, group, position, checked, on)
            return {key: array_ops.upload(values, on) for key, values in found.items()}

    def set_state(
        self, name: str, ids: Any, states: Mapping[str, Any], *, stream: Any = None
    ) -> None:
        """Set states of rows: of a cached row in FP32; any other state is rounded into its table.

        Parameters
        ----------
        name : str
            The table.
        ids : int32, int64, uint32 or uint64 array (n,)
            Without duplicates.
        states : dict of state name -> float32 array
            (n, D), or (n,) for a state of one value a row, as `state` returns them; finite, within
            the range of the state's precision, and not negative where it is a sum or mean of
            squares. States that are left out stay as they are, and so do the rows.
        """
        wait_until_computed(ids, states)
        with self._calls.on_stream(stream, captures.waits("set_state"), changes=True) as on:
            group, position = self._find(name)
            self._engine.raise_found(on)
            given, taken = view(ids, "ids", on), row_states.views(states, on)
            refuse_moved([given, *taken.values()])
            table = self._tables[group.plan.tables[position]]
            checked = arrays.unique_row_ids(table, given, on)
            values = row_states.checked_states(
                self._state, group, position, taken, len(checked), on
            )
            with self._calls.inside(alone=True):
                row_states.set_states(self._state, group, position, checked, values, on)

    @property
    def updates(self) -> int:
        """The count of updates, which Adam's bias correction and `lr_decay` follow.

        Waits for a device.
        """
        with self._calls.on_last_stream(captures.waits("updates")) as on:
            return self._state.counters(on).updates

    def set_updates(self, updates: int) -> None:
        """Continue from a count of updates, such as the ``step`` of ``torch.optim.SparseAdam``.

        The write step becomes at least as large: every update takes one.
        """
        refuse = captures.waits("set_updates")
        with self._calls.on_last_stream(refuse, changes=True, alone=True) as on:
            self._engine.raise_found(on)
            self._state.set_updates(updates, on)

    def export(self, name: str, layout: str = "packed", *, stream: Any = None) -> Any:
        """Return a copy of a table's rows for inference; nothing changes.

        Rows that the cache holds are encoded as a `flush` would encode them now.

        Parameters
        ----------
        name : str
            The table.
        layout : str
            ``"packed"``: as they are stored (``docs/numerics.md``). ``"torch"``: as
            ``torch.ops.quantized.embedding_bag_byte_rowwise_offsets`` and its kind for 4 and 2 bits
            read them; for precision ``"int8"``, ``"int4"`` with an even dimension and ``"int2"``
            with a multiple of 4. ``"fbgemm"``: as FBGEMM's inference operators read them, scale
            and bias first; for ``"int8_fp16"``, ``"int4"``, ``"int2"``, ``"fp16"`` and ``"fp32"``.
        stream
            As in `forward`.

        Returns
        -------
        numpy.ndarray or Tensor (E, bytes), uint8

        Raises
        ------
        ValueError
            If the layout does not know the table's precision or, with it, dimension.
        """
        with self._calls.on_stream(stream, captures.waits("export"), holds=True) as on:
            group, position = self._find(name)
            self._engine.raise_found(on)
            return export_rows(self._state, group, position, layout, on)
