"""From what a caller passes to checked views: nothing is copied but dict batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpembed import _arrays, _captures, _core, devices, registry
from mpembed._checks import MAX_SEED, MAX_STEP, integer
from mpembed._device import Stream
from mpembed._dlpack import device_pair, view
from mpembed._view import DTYPES, View, require
from mpembed.config import TableConfig

FLOAT = DTYPES["float32"]
INDEX = DTYPES["int32"] | DTYPES["int64"]
BYTE = DTYPES["uint8"]
Output = Any  # an array, or a dict of table name -> array


def begin(values: Any, name: str, stream: Any, refuse: _captures.Refuse) -> tuple[Stream, View]:
    """Return where a stateless call happens, which its first array decides, and that array.

    `refuse` is called with the stream if the call would be captured, before anything is queued.
    """
    try:
        device = devices.of_dlpack(*device_pair(values, name))
    except RuntimeError as error:
        raise BufferError(f"{name}: is on a CUDA device, but {error}") from None
    on = device.stream(stream)
    if on.capture != 0:
        refuse(on)
    return on, view(values, name, on)


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
    joined = _arrays.sent(np.concatenate(values), on) if weights is not None else None
    whole = _arrays.sent(np.concatenate(indices), on), _arrays.sent(np.concatenate(offsets), on)
    return *whole, joined, sources


def _vector(
    values: Any, name: str, kinds: int, sources: list[View], on: Stream, length: int = -1
) -> Any:
    """Return one table's array in the host's memory, where they are joined."""
    checked = view(values, name, on)
    require(checked, kinds, 1, (length,))
    sources.append(checked)
    return _core.host_copy(checked, on)


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
    groups: int,
    on: Stream,
) -> _core.Batch:
    """Check a batch, of which `groups` groups get a share, and return it.

    Raises
    ------
    TypeError, ValueError, BufferError
        If an array has the wrong dtype, shape or device, or, on the CPU, offsets are not monotone.
    """
    if not isinstance(indices, Mapping):
        return _make_batch(indices, offsets, weights, len(configs), groups, on)
    if offsets is not None:
        raise TypeError("offsets must be None where indices is a dict")
    indices, offsets, weights, sources = _concatenate(configs, indices, weights, on)
    return _make_batch(indices, offsets, weights, len(configs), groups, on, sources)


def make_batch_of_one(indices: Any, offsets: Any, weights: Any, on: Stream) -> _core.Batch:
    """Check the batch of a single table, which may not be a dict; raises as `make_batch`."""
    return _make_batch(indices, offsets, weights, 1, 1, on)


def _make_batch(
    indices: Any,
    offsets: Any,
    weights: Any,
    tables: int,
    groups: int,
    on: Stream,
    sources: list[View] | None = None,
) -> _core.Batch:
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
    return _core.Batch(on, index_view, offset_view, weight_view, tables, groups, sources)


def one_bag(indices: View, on: Stream) -> Any:
    """Return the offsets of a single bag that holds all indices."""
    return _arrays.sent(np.array([0, indices.size], np.int64), on)


def weight_counts(configs: Sequence[TableConfig], batch: _core.Batch) -> dict[str, int] | None:
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
        name: _arrays.piece(values, end - count, end)
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
    group: _core.Group, rows: int, batch: _core.Batch, on: Stream, argument: str = "indices"
) -> _core.Lookups:
    """Return the lookups of a batch of one table, all in range; a device is waited for."""
    lookups = group.prepare(batch, False, on)
    found = batch.found(on)
    if found is not None:
        raise index_error(group.names[0], rows, found, argument)
    return lookups


def draw_key(seed: int, step: int) -> tuple[int, int]:
    """Return the checked key of random bits."""
    return integer("seed", seed, 0, MAX_SEED), integer("step", step, 0, MAX_STEP)


def storable(
    x: View, rows: int, dim: int, precision: str, name: str, on: Stream, unit: str = "row"
) -> None:
    """Raise ValueError if a precision cannot store a row; a device is waited for."""
    found = _core.unstorable(x, rows, dim, registry.FORMATS[precision], on)
    if found is not None:
        raise ValueError(
            f"{name}: {unit} {found[0]} is not finite or exceeds the range of {precision}; "
            f"{found[1]} such {unit}s"
        )


def pooled_width(configs: Sequence[TableConfig]) -> int | None:
    """Return the columns of the pooled output, or None where some table is unpooled."""
    if any(config.pooling == "none" for config in configs):
        return None
    return sum(config.embedding_dim for config in configs)


def unpooled_shapes(
    configs: Sequence[TableConfig], batch_size: int, counts: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Return the shape of each table's output where some table is unpooled."""
    return {
        config.name: (count if config.pooling == "none" else batch_size, config.embedding_dim)
        for config, count in zip(configs, counts, strict=True)
    }


def matrix_views(
    values: Any,
    name: str,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    on: Stream,
    *,
    writable: bool,
) -> View | dict[str, View]:
    """Check an output or gradient against its shape (a dict where some table is unpooled)."""
    if isinstance(shapes, dict):
        if not isinstance(values, Mapping) or set(values) != set(shapes):
            raise ValueError(
                f"{name} must be a dict with the tables {list(shapes)}, since one is unpooled"
            )
        return {
            key: _matrix(values[key], f"{name} of table {key!r}", shape, on, writable)
            for key, shape in shapes.items()
        }
    return _matrix(values, name, shapes, on, writable)


def _matrix(value: Any, name: str, shape: tuple[int, int], on: Stream, writable: bool) -> View:
    checked = view(value, name, on)
    require(checked, FLOAT, 2, shape, writable=writable)
    return checked


def allocate_output(shapes: tuple[int, int] | dict[str, tuple[int, int]], on: Stream) -> Output:
    """Return new arrays of these shapes."""
    if isinstance(shapes, dict):
        return {name: _arrays.result(shape, np.float32, on) for name, shape in shapes.items()}
    return _arrays.result(shapes, np.float32, on)


def row_ids(config: TableConfig, ids: Any, on: Stream) -> Any:
    """Return checked row ids as an int64 array of the host; a device is waited for."""
    checked = view(ids, "ids", on)
    require(checked, INDEX, 1)
    array = _core.host_copy(checked, on).astype(np.int64)
    bad = np.flatnonzero((array < 0) | (array >= config.num_embeddings))
    if bad.size:
        raise IndexError(
            f"table {config.name!r} (num_embeddings={config.num_embeddings}): id "
            f"{array[bad[0]]} at position {bad[0]} is out of range; {bad.size} such ids"
        )
    return array


def result_view(
    out: Any,
    shape: tuple[int, ...],
    dtype: Any,
    kinds: int,
    on: Stream,
    *read: View | None,
    name: str = "out",
) -> tuple[Any, View]:
    """Return `out` or a new array, and its view, which may not overlap what is read."""
    result = _arrays.result(shape, dtype, on) if out is None else out
    checked = view(result, name, on)
    require(checked, kinds, len(shape), shape, writable=True)
    if out is not None:
        _core.refuse_overlap([checked], list(read))
    return result, checked


def output_views(
    out: Any,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    batch: _core.Batch,
    on: Stream,
) -> tuple[Output, View | dict[str, View]]:
    """Return a forward's `out` or new arrays, and their views, which may not overlap the batch."""
    if out is None:
        out = allocate_output(shapes, on)
        return out, matrix_views(out, "out", shapes, on, writable=True)
    views = matrix_views(out, "out", shapes, on, writable=True)
    written = list(views.values()) if isinstance(views, dict) else [views]
    _core.refuse_overlap(written, batch.arguments())
    return out, views


def packed_rows(source: View, precision: str, dim: int) -> View:
    """Check that an array holds rows of a precision."""
    require(source, BYTE, 2)
    width = registry.row_bytes(precision, dim)
    if source.shape[1] != width:
        raise ValueError(
            f"rows must have {width} bytes a row ({precision}, dim {dim}), got {source.shape[1]}"
        )
    return source
