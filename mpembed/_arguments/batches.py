"""A caller's batch, checked: nothing is copied but dict batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpembed._arguments.arrays import FLOAT, INDEX
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import View, require
from mpembed.config import TableConfig


def _concatenate(
    configs: Sequence[TableConfig], named: Mapping[str, Any], weights: Any, on: Stream
) -> tuple[Any, Any, Any, list[View]]:
    """Return the table-major arrays of a dict of table name -> (indices, offsets), and views."""
    names = [config.name for config in configs]
    if set(named) != set(names):
        raise ValueError(f"expected a batch for each of the tables {names}, got {list(named)}")
    if weights is not None and (not isinstance(weights, Mapping) or set(weights) != set(names)):
        raise ValueError("per_sample_weights must be a dict with the same tables as the indices")
    indices, offsets, values, start = [], [np.zeros(1, np.int64)], [], 0
    sources: list[View] = []
    for name in names:
        try:
            table_indices, table_offsets = named[name]
        except (TypeError, ValueError):
            raise TypeError(f"the batch of table {name!r} must be (indices, offsets)") from None
        checked = _vector(table_indices, f"indices of table {name!r}", INDEX, sources, on)
        what = f"offsets of table {name!r}"
        ends = _vector(table_offsets, what, INDEX, sources, on).astype(np.int64)
        _check_table_offsets(ends, len(checked), what)
        if len(offsets) > 1 and len(ends) - 1 != len(offsets[1]):
            raise ValueError(
                f"table {name!r} has {len(ends) - 1} bags, the tables before have {len(offsets[1])}"
            )
        indices.append(checked.astype(np.int64, copy=False))
        offsets.append(ends[1:] + start)
        start += len(checked)
        if weights is not None:
            what = f"per_sample_weights of table {name!r}"
            values.append(_vector(weights[name], what, FLOAT, sources, on, len(checked)))
    joined = array_ops.upload(np.concatenate(values), on) if weights is not None else None
    whole = (
        array_ops.upload(np.concatenate(indices), on),
        array_ops.upload(np.concatenate(offsets), on),
    )
    return *whole, joined, sources


def _vector(
    values: Any, name: str, kinds: int, sources: list[View], on: Stream, length: int = -1
) -> Any:
    """Return one table's array in the host's memory, where they are joined."""
    checked = view(values, name, on)
    require(checked, kinds, 1, (length,))
    sources.append(checked)
    return kernels.host_copy(checked, on)


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
) -> kernels.Batch:
    """Check a batch and return it.

    Raises
    ------
    TypeError, ValueError, BufferError
        If an array has the wrong dtype, shape or device.
    """
    if not isinstance(indices, Mapping):
        return _make_batch(indices, offsets, weights, len(configs), on)
    if offsets is not None:
        raise TypeError("offsets must be None where indices is a dict")
    indices, offsets, weights, sources = _concatenate(configs, indices, weights, on)
    return _make_batch(indices, offsets, weights, len(configs), on, sources)


def make_batch_of_one(indices: Any, offsets: Any, weights: Any, on: Stream) -> kernels.Batch:
    """Check the batch of a single table, which may not be a dict; raises as `make_batch`."""
    return _make_batch(indices, offsets, weights, 1, on)


def _make_batch(
    indices: Any,
    offsets: Any,
    weights: Any,
    tables: int,
    on: Stream,
    sources: list[View] | None = None,
) -> kernels.Batch:
    index_view = view(indices, "indices", on)
    if offsets is None:
        raise TypeError("offsets are missing (only a collection's dict batch goes without)")
    offset_view = view(offsets, "offsets", on)
    require(index_view, INDEX, 1)
    require(offset_view, INDEX, 1)
    if offset_view.size < 1 or (offset_view.size - 1) % tables != 0:
        raise ValueError(
            f"offsets must have {tables} x batch size + 1 entries (table-major, the last one the "
            f"number of indices, as PyTorch's include_last_offset=True), got {offset_view.size}"
        )
    weight_view = None
    if weights is not None:
        weight_view = view(weights, "per_sample_weights", on)
        require(weight_view, FLOAT, 1, (index_view.size,))
    return kernels.Batch(index_view, offset_view, weight_view, tables, sources)


def one_bag(indices: View, on: Stream) -> Any:
    """Return the offsets of a single bag that holds all indices."""
    return array_ops.upload(np.array([0, indices.size], np.int64), on)


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
    name: str, rows: int, found: tuple[int, int, int, int], argument: str, first: int = 0
) -> IndexError:
    """Return the error for indices out of range.

    `found` is what a kernel found: table, position, value, count. `first` is subtracted from the
    position.
    """
    _, position, value, count = found
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
        raise index_error(group.names[0], rows, lookups.found, argument)
    return lookups
