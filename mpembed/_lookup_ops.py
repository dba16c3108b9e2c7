"""The lookups of ``mpembed.ops``: unique rows, cache tags, pooled packed tables."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import _core, registry
from mpembed._checks import integer
from mpembed._dlpack import view
from mpembed._inputs import (
    FLOAT,
    INDEX,
    group_lookups,
    make_batch_of_one,
    no_stream,
    packed_rows,
    result_view,
)
from mpembed._view import DTYPES, View, require
from mpembed.registry import MAX_DIM

Array = npt.NDArray[Any]


def unique_rows(indices: Any, *, out: Any = None, stream: Any = None) -> tuple[Any, Any, Any]:
    """Find the unique values of row indices.

    Parameters
    ----------
    indices : int32 or int64 tensor (N,)
        All >= 0.
    out : tuple of three tensors, optional
        int64 of at least N, int64 of at least N + 1 and int32 of at least N elements; what is
        returned are their beginnings, and the rest is undefined.

    Returns
    -------
    rows : numpy.ndarray (U,), int64
        Ascending.
    starts : numpy.ndarray (U + 1,), int64
        The occurrences of ``rows[u]`` are ``positions[starts[u] : starts[u + 1]]``.
    positions : numpy.ndarray (N,), int32
        Ascending within a row.
    """
    no_stream(stream)
    source = view(indices, "indices")
    require(source, INDEX, 1)
    keys = _row_keys(source, "indices")
    n = integer("the number of indices", len(keys), 0, 2**31 - 1)
    arrays = (np.empty(n, np.int64), np.empty(n + 1, np.int64), np.empty(n, np.int32))
    if out is not None:
        if not isinstance(out, tuple) or len(out) != 3:
            raise TypeError(f"out must be a tuple of three arrays, got {type(out).__name__}")
        arrays = out
    views = [
        _room(array, name, DTYPES[dtype], least)
        for array, name, dtype, least in zip(
            arrays,
            ("rows of out", "starts of out", "positions of out"),
            ("int64", "int64", "int32"),
            (n, n + 1, n),
            strict=True,
        )
    ]
    if out is not None:
        _core.refuse_overlap(views, [source])
    count = _core.unique_keys(keys, *views)
    rows, starts, positions = arrays[0][:count], arrays[1][: count + 1], arrays[2][:n]
    # A result of its own gives back what the duplicates took.
    return (rows.copy(), starts.copy(), positions) if out is None else (rows, starts, positions)


def _room(array: Any, name: str, kind: int, least: int) -> View:
    checked = view(array, name)
    require(checked, kind, 1, writable=True)
    if checked.size < least:
        raise ValueError(f"{name}: at least {least} elements are needed, got {checked.size}")
    return checked


def _row_keys(source: View, name: str) -> Array:
    values = np.asarray(source)
    if values.size and values.min() < 0:
        position = int(np.argmax(values < 0))
        raise IndexError(f"{name} must not be negative, got {values[position]} at {position}")
    return values.astype(np.uint64)


def cache_lookup(tags: Any, rows: Any, *, out: Any = None, stream: Any = None) -> Any:
    """Find linear row ids in a cache's tags.

    Parameters
    ----------
    tags : uint64 tensor (num_sets, ways)
        As in ``EmbeddingBagCollection.state_arrays()``.
    rows : int32 or int64 tensor (N,)
        Linear row ids, 0 <= id < 2^48 - 1.
    out : int32 tensor (N,), optional

    Returns
    -------
    numpy.ndarray (N,), int32
        set * ways + way, or -1 where the row is not cached.
    """
    no_stream(stream)
    table = view(tags, "tags")
    require(table, DTYPES["uint64"], 2)
    sets, ways = table.shape
    integer("sets of tags", sets, 1, 2**31 - 1)
    integer("ways of tags", ways, 1, 1024)
    integer("slots of tags", sets * ways, 1, 2**31 - 1)
    source = view(rows, "rows")
    require(source, INDEX, 1)
    keys = _row_keys(source, "rows")
    if keys.size and keys.max() >= 2**48 - 1:
        raise IndexError(f"rows must be below 2^48 - 1, got {keys.max()}")
    result, target = result_view(out, (len(keys),), np.int32, DTYPES["int32"], table, source)
    _core.cache_lookup(table, keys, target)
    return result


def embedding_bag(
    rows: Any,
    precision: str,
    dim: int,
    indices: Any,
    offsets: Any,
    *,
    pooling: str = "sum",
    per_sample_weights: Any = None,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Pool rows of a packed table.

    Parameters
    ----------
    rows : uint8 tensor (E, row_bytes)
    precision, dim
        Format and columns of the table.
    indices : int32 or int64 tensor (N,)
    offsets : int32 or int64 tensor (B + 1,)
    pooling : str
        ``"sum"``, ``"mean"`` or ``"none"``.
    per_sample_weights : float32 tensor (N,), optional
    out : float32 tensor (B, dim), or (N, dim) for "none", optional

    Returns
    -------
    numpy.ndarray, float32, of out's shape

    Raises
    ------
    IndexError
        If an index is out of range.
    """
    no_stream(stream)
    mode = registry.choose("pooling", pooling, registry.POOLINGS)
    fmt = registry.choose("precision", precision, registry.FORMATS)
    dim = integer("dim", dim, 1, MAX_DIM)
    table = packed_rows(rows, precision, dim)
    batch = make_batch_of_one(indices, offsets, per_sample_weights)
    count = batch.num_indices if pooling == "none" else batch.batch_size
    read = [table, *batch.arguments()]
    result, target = result_view(out, (count, dim), np.float32, FLOAT, *read)
    group = _core.Group(1, dim, 0, 0)
    group.add_table("rows", table, None, None, fmt, 0, mode, 0, 0)
    lookups = group_lookups([group], batch, drop=False)[0]
    group.lookup(lookups, _core.Work(group, lookups, target, False))
    return result
