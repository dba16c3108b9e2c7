"""From what a caller passes to checked views: nothing is copied but dict batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpembed import _core, registry
from mpembed._checks import integer
from mpembed._dlpack import view
from mpembed._view import DTYPES, View, require
from mpembed.config import TableConfig

FLOAT = DTYPES["float32"]
INDEX = DTYPES["int32"] | DTYPES["int64"]
BYTE = DTYPES["uint8"]
Output = Any  # an array, or a dict of table name -> array


def _concatenate(
    configs: Sequence[TableConfig], named: Mapping[str, Any], weights: Any
) -> tuple[Any, Any, Any]:
    """Return the table-major arrays of a dict of table name -> (indices, offsets)."""
    names = [config.name for config in configs]
    if set(named) != set(names):
        raise ValueError(f"expected a batch for each of the tables {names}, got {list(named)}")
    if weights is not None and (not isinstance(weights, Mapping) or set(weights) != set(names)):
        raise ValueError("per_sample_weights must be a dict with the same tables as the indices")
    indices, offsets, values, start = [], [np.zeros(1, np.int64)], [], 0
    for name in names:
        try:
            table_indices, table_offsets = named[name]
        except (TypeError, ValueError):
            raise TypeError(f"the batch of table {name!r} must be (indices, offsets)") from None
        checked = _index_array(table_indices, f"indices of table {name!r}")
        ends = _index_array(table_offsets, f"offsets of table {name!r}").astype(np.int64)
        if len(ends) < 1 or ends[0] != 0 or ends[-1] != len(checked):
            raise ValueError(
                f"offsets of table {name!r} must start at 0 and end at {len(checked)}, its indices"
            )
        if len(offsets) > 1 and len(ends) - 1 != len(offsets[1]):
            raise ValueError(
                f"table {name!r} has {len(ends) - 1} bags, the tables before have {len(offsets[1])}"
            )
        indices.append(checked.astype(np.int64, copy=False))
        offsets.append(ends[1:] + start)
        start += len(checked)
        if weights is not None:
            table_weights = view(weights[name], f"per_sample_weights of table {name!r}")
            require(table_weights, FLOAT, 1, (len(checked),))
            values.append(np.asarray(table_weights))
    joined = np.concatenate(values) if weights is not None else None
    return np.concatenate(indices), np.concatenate(offsets), joined


def _index_array(values: Any, name: str) -> Any:
    checked = view(values, name)
    require(checked, INDEX, 1)
    return np.asarray(checked)


def make_batch(
    configs: Sequence[TableConfig | None], indices: Any, offsets: Any, weights: Any
) -> _core.Batch:
    """Check a batch and return it.

    Raises
    ------
    TypeError, ValueError, BufferError
        If an array has the wrong dtype, shape or device, or the offsets are not monotone.
    """
    if isinstance(indices, Mapping):
        if offsets is not None:
            raise TypeError("offsets must be None where indices is a dict")
        named = [config for config in configs if config is not None]
        indices, offsets, weights = _concatenate(named, indices, weights)
    elif offsets is None:
        raise TypeError("offsets are missing (only a dict of (indices, offsets) goes without)")
    index_view, offset_view = view(indices, "indices"), view(offsets, "offsets")
    require(index_view, INDEX, 1)
    require(offset_view, INDEX, 1)
    tables = len(configs)
    if offset_view.size < 1 or (offset_view.size - 1) % tables != 0:
        raise ValueError(
            f"offsets must have {tables} x batch size + 1 entries (table-major), got "
            f"{offset_view.size}"
        )
    weight_view = None
    if weights is not None:
        weight_view = view(weights, "per_sample_weights")
        require(weight_view, FLOAT, 1, (index_view.size,))
    return _core.Batch(index_view, offset_view, weight_view, tables)


def make_batch_of_one(indices: Any, offsets: Any, weights: Any) -> _core.Batch:
    """Check the batch of a single table and return it; raises as `make_batch`."""
    return make_batch((None,), indices, offsets, weights)


def no_stream(stream: Any) -> None:
    """Refuse a device stream."""
    if stream is not None:
        raise ValueError("stream must be None on the CPU")


def draw_key(seed: int, step: int) -> tuple[int, int]:
    """Return the checked key of random bits."""
    return integer("seed", seed, 0, 2**64 - 1), integer("step", step, 0, 2**40 - 1)


def storable(x: View, rows: int, dim: int, precision: str, name: str, unit: str = "row") -> None:
    """Raise ValueError if a precision cannot store a row: non-finite, or out of its range."""
    found = _core.unstorable(x, rows, dim, registry.FORMATS[precision])
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
    values: Any, name: str, shapes: tuple[int, int] | dict[str, tuple[int, int]], *, writable: bool
) -> View | dict[str, View]:
    """Check an output or gradient against its shape (a dict where some table is unpooled)."""
    if isinstance(shapes, dict):
        if not isinstance(values, Mapping) or set(values) != set(shapes):
            raise ValueError(
                f"{name} must be a dict with the tables {list(shapes)}, since one is unpooled"
            )
        return {
            key: _matrix(values[key], f"{name} of table {key!r}", shape, writable)
            for key, shape in shapes.items()
        }
    return _matrix(values, name, shapes, writable)


def _matrix(value: Any, name: str, shape: tuple[int, int], writable: bool) -> View:
    checked = view(value, name)
    require(checked, FLOAT, 2, shape, writable=writable)
    return checked


def allocate_output(shapes: tuple[int, int] | dict[str, tuple[int, int]]) -> Output:
    """Return new arrays of these shapes."""
    if isinstance(shapes, dict):
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    return np.empty(shapes, np.float32)


def row_ids(config: TableConfig, ids: Any) -> Any:
    """Return checked row ids as an int64 array."""
    checked = view(ids, "ids")
    require(checked, INDEX, 1)
    array = np.asarray(checked).astype(np.int64)
    bad = np.flatnonzero((array < 0) | (array >= config.num_embeddings))
    if bad.size:
        raise IndexError(
            f"table {config.name!r} (num_embeddings={config.num_embeddings}): id "
            f"{array[bad[0]]} at position {bad[0]} is out of range; {bad.size} such ids"
        )
    return array


def result_view(out: Any, shape: tuple[int, ...], dtype: Any, kinds: int) -> tuple[Any, View]:
    """Return `out` or a new array, and its view."""
    result = np.empty(shape, dtype) if out is None else out
    checked = view(result, "out")
    require(checked, kinds, len(shape), shape, writable=True)
    return result, checked


def packed_rows(rows: Any, precision: str, dim: int) -> View:
    source = view(rows, "rows")
    require(source, BYTE, 2)
    width = registry.row_bytes(precision, dim)
    if source.shape[1] != width:
        raise ValueError(
            f"rows must have {width} bytes a row ({precision}, dim {dim}), got {source.shape[1]}"
        )
    return source
