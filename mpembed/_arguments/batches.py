"""A caller's batch, checked: nothing is copied but dict batches.

What a caller's memory holds may change during a call: by another thread, or by the code that
exports a later argument. So all arguments of a call are exported before the memory of any is read.
Kernels copy offsets before they check them and read each index once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpembed._arguments.arrays import FLOAT, require_index, signed_view
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import refuse_moved, view
from mpembed._bindings.view import View, require
from mpembed.config import TableConfig


class _NamedBatch:
    """The arrays of a dict of table name -> (indices, offsets), of which nothing is read yet."""

    def __init__(
        self,
        configs: Sequence[TableConfig],
        named: Mapping[str, Any],
        weights: Any,
        on: Stream,
    ) -> None:
        self.names = [config.name for config in configs]
        if set(named) != set(self.names):
            raise ValueError(
                f"expected a batch for each of the tables {self.names}, got {list(named)}"
            )
        if weights is not None and (
            not isinstance(weights, Mapping) or set(weights) != set(self.names)
        ):
            raise ValueError(
                "per_sample_weights must be a dict with the same tables as the indices"
            )
        self.weighted, given = weights is not None, weights or {}
        self.views: list[View] = []  # of each table: indices, offsets, weights if there are any
        for name in self.names:
            try:
                indices, offsets = named[name]
            except (TypeError, ValueError):
                raise TypeError(f"the batch of table {name!r} must be (indices, offsets)") from None
            self.views.append(view(indices, f"indices of table {name!r}", on))
            self.views.append(view(offsets, f"offsets of table {name!r}", on))
            if self.weighted:
                self.views.append(view(given[name], f"per_sample_weights of table {name!r}", on))

    def joined(self, on: Stream) -> tuple[Any, Any, Any]:
        """Return the table-major arrays; what was checked is a copy."""
        indices, offsets, values, start = [], [np.zeros(1, np.int64)], [], 0
        each = 3 if self.weighted else 2
        for number, name in enumerate(self.names):
            own, ends, *weights = self.views[each * number : each * (number + 1)]
            require_index(own, unsigned=True)
            require_index(ends)
            checked = kernels.host_copy(ends, on).astype(np.int64)
            _check_table_offsets(checked, own.size, ends.name)
            if len(offsets) > 1 and len(checked) - 1 != len(offsets[1]):
                raise ValueError(
                    f"table {name!r} has {len(checked) - 1} bags, the tables before have "
                    f"{len(offsets[1])}"
                )
            indices.append(kernels.host_copy(own, on).astype(np.int64, copy=False))
            offsets.append(checked[1:] + start)
            start += own.size
            for one in weights:
                require(one, FLOAT, 1, (own.size,))
                values.append(kernels.host_copy(one, on))
        return (
            array_ops.upload(np.concatenate(indices), on),
            array_ops.upload(np.concatenate(offsets), on),
            array_ops.upload(np.concatenate(values), on) if self.weighted else None,
        )


def _check_table_offsets(ends: Any, count: int, what: str) -> None:
    if len(ends) < 1 or ends[0] != 0 or ends[-1] != count:
        raise ValueError(f"{what} must start at 0 and end at {count}, its indices")
    falls = np.flatnonzero(ends[1:] < ends[:-1])
    if len(falls):
        at = falls[0] + 1
        raise ValueError(
            f"{what} must not decrease: offsets[{at}] is {ends[at]}, less than the one before"
        )


def make_batch(
    configs: Sequence[TableConfig],
    indices: Any,
    offsets: Any,
    weights: Any,
    on: Stream,
    others: Sequence[View] = (),
) -> kernels.Batch:
    """Check a batch and return it.

    `others` are the call's other arrays. They were exported before, so that the batch's own memory
    is not read before all of them are.

    Raises
    ------
    TypeError, ValueError, BufferError
        If an array has the wrong dtype, shape or device.
    """
    if not isinstance(indices, Mapping):
        return _make_batch(indices, offsets, weights, len(configs), on, others)
    if offsets is not None:
        raise TypeError("offsets must be None where indices is a dict")
    named = _NamedBatch(configs, indices, weights, on)
    refuse_moved([*named.views, *others])
    return _make_batch(*named.joined(on), len(configs), on, (), named.views)


def make_batch_of_one(
    indices: Any, offsets: Any, weights: Any, on: Stream, others: Sequence[View] = ()
) -> kernels.Batch:
    """Check the batch of a single table, which may not be a dict; otherwise as `make_batch`."""
    return _make_batch(indices, offsets, weights, 1, on, others)


def single_bag(indices: View, on: Stream) -> kernels.Batch:
    """Return the batch of a single table with one bag, which holds all indices (checked)."""
    ends = array_ops.upload(np.array([0, indices.size], np.int64), on)
    return kernels.Batch(indices, view(ends, "offsets", on), None, 1)


def _make_batch(
    indices: Any,
    offsets: Any,
    weights: Any,
    tables: int,
    on: Stream,
    others: Sequence[View],
    sources: list[View] | None = None,
) -> kernels.Batch:
    given = view(indices, "indices", on)
    if offsets is None:
        raise TypeError("offsets are missing (only a collection's dict batch goes without)")
    offset_view = view(offsets, "offsets", on)
    weight_view = None if weights is None else view(weights, "per_sample_weights", on)
    refuse_moved([given, offset_view, weight_view, *others])
    index_array, unsigned = signed_view(given, on)
    require_index(offset_view)
    if offset_view.size < 1 or (offset_view.size - 1) % tables != 0:
        raise ValueError(
            f"offsets must have {tables} x batch size + 1 entries (table-major, the last one the "
            f"number of indices, as PyTorch's include_last_offset=True), got {offset_view.size}"
        )
    if weight_view is not None:
        require(weight_view, FLOAT, 1, (index_array.size,))
    kind = _UnsignedBatch if unsigned else kernels.Batch
    return kind(index_array, offset_view, weight_view, tables, sources)


class _UnsignedBatch(kernels.Batch):
    """A batch whose uint64 indices are read as int64."""


def caller_value(value: int, batch: kernels.Batch | None, table: int) -> int:
    """Return the index that a kernel has read as `value`: uint64 are read as int64."""
    if value >= 0 or batch is None:
        return value
    unsigned = isinstance(batch, _UnsignedBatch)
    if batch.sources is not None:
        of_a_table = 2 if batch.weights is None else 3  # indices, offsets, weights
        unsigned = batch.sources[of_a_table * table].dtype == "uint64"
    return value + 2**64 if unsigned else value


def weight_counts(configs: Sequence[TableConfig], batch: kernels.Batch) -> dict[str, int] | None:
    """Return the indices of each table where the per-sample weights came as a dict, else None."""
    if batch.sources is None or batch.weights is None:
        return None
    indices = batch.sources[::3]  # of (indices, offsets, weights) for each table
    return {config.name: one.size for config, one in zip(configs, indices, strict=True)}


def by_table(values: Any, counts: dict[str, int] | None) -> Any:
    """Cut what has one value an index into a dict of table name -> array where counts are given."""
    if counts is None:
        return values
    ends = np.cumsum(list(counts.values())).tolist()
    return {
        name: array_ops.piece(values, end - count, end)
        for (name, count), end in zip(counts.items(), ends, strict=True)
    }


def index_error(
    name: str,
    rows: int,
    found: tuple[int, int, int, int],
    argument: str,
    first: int = 0,
    batch: kernels.Batch | None = None,
) -> IndexError:
    """Return the error for indices out of range.

    `found` is what a kernel found: table, position, value, count. `first` is subtracted from the
    position.
    """
    table, position, value, count = found
    value = caller_value(value, batch, table)
    return IndexError(
        f"table {name!r} (num_embeddings={rows}): index {value} at position {position - first} of "
        f"{argument} is out of range; {count} such in the batch"
    )


def table_lookups(
    group: kernels.Group, rows: int, batch: kernels.Batch, on: Stream, argument: str = "indices"
) -> kernels.GroupBatch:
    """Return the lookups of a batch of one table, all in range; a device is waited for."""
    lookups = kernels.GroupBatch(group, batch, on)
    if lookups.found is not None:
        raise index_error(group.names[0], rows, lookups.found, argument, batch=batch)
    return lookups
