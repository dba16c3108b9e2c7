"""The lookups of ``mpembed.ops``: unique rows, cache tags, pooled packed tables."""

from typing import Any

import numpy as np

from mpembed import registry
from mpembed._arguments import captures
from mpembed._arguments.arrays import INDEX, OUTPUT, begin, packed_rows, result_view
from mpembed._arguments.batches import make_batch_of_one, single_bag, table_lookups
from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import refuse_moved, view
from mpembed._bindings.tensor import Tensor
from mpembed._bindings.view import DTYPES, View, require
from mpembed.registry import MAX_DIM


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
    on, source = begin(indices, "indices", stream, captures.waits("unique_rows"))
    require(source, INDEX, 1)
    n = integer("the number of indices", source.size, 0, contract.MAX_LOOKUPS)
    kinds = ("int64", "int64", "int32")
    least = (n, n + 1, n)
    if out is None:
        pairs = zip(least, kinds, strict=True)
        arrays = tuple(array_ops.result((size,), dtype, on) for size, dtype in pairs)
    elif not isinstance(out, tuple) or len(out) != 3:
        raise TypeError(f"out must be a tuple of three arrays, got {type(out).__name__}")
    else:
        arrays = out
        _refuse_without_slices(out)
    names = ("rows of out", "starts of out", "positions of out")
    views = [_vector(*each, on) for each in zip(arrays, names, kinds, least, strict=True)]
    if out is not None:
        refuse_moved([source, *views])
        kernels.refuse_overlap(views, [source])
    keys = _keys(source, "indices", 2**63 - 1, on)
    count = kernels.unique_keys(keys, _limit(keys, source, on), views[0], views[1], views[2], on)
    rows = array_ops.piece(arrays[0], 0, count)
    starts = array_ops.piece(arrays[1], 0, count + 1)
    positions = array_ops.piece(arrays[2], 0, n)
    # A copy does not keep the memory that the duplicates took; NumPy's copy waits for no device.
    if out is None and on.device.synchronous:
        return rows.copy(), starts.copy(), positions
    return rows, starts, positions


def _refuse_without_slices(out: tuple[Any, Any, Any]) -> None:
    """Raise TypeError where what is to be returned cannot be a beginning of an array."""
    for one in out:
        if not hasattr(type(one), "__getitem__") and not isinstance(one, Tensor):
            raise TypeError(
                f"out: a {type(one).__name__} cannot be sliced, and the beginnings of out are "
                "returned; pass NumPy arrays, PyTorch tensors or mpembed's own"
            )


def _limit(keys: kernels.Keys, source: View, on: Stream) -> int:
    """Return a number that all keys are below: the fewer bits, the faster the sort."""
    if on.device.synchronous:  # the keys can be read at once
        return keys.limit()
    return 2**31 if source.dtype == "int32" else 2**63 - 1


def _vector(array: Any, name: str, dtype: str, least: int, on: Stream) -> View:
    checked = view(array, name, on)
    require(checked, DTYPES[dtype], 1, writable=True)
    if checked.size < least:
        raise ValueError(f"{name}: at least {least} elements are needed, got {checked.size}")
    return checked


def _keys(source: View, name: str, below: int, on: Stream) -> kernels.Keys:
    """Return row numbers as keys; IndexError where one is out of range, for which a device waits.

    The same kernel makes them that reads the batches of a collection.
    """
    group = kernels.Group(kernels.StepCounter(on, 0), 0, 1, 1, 0, 0)
    group.add_rowless_table(name, below)
    group.upload_descriptors(on)
    lookups = kernels.GroupBatch(group, single_bag(source, on), on)
    if lookups.found is not None:
        _, position, value, _ = lookups.found
        bound = "not be negative" if value < 0 else f"be below {below}"
        raise IndexError(f"{name} must {bound}, got {value} at {position}")
    return kernels.Keys.of(lookups)


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
    on, table = begin(tags, "tags", stream, captures.waits("cache_lookup"))
    require(table, DTYPES["uint64"], 2)
    sets, ways = table.shape
    integer("sets of tags", sets, 1, contract.MAX_SLOTS)
    integer("ways of tags", ways, 1, 1024)
    integer("slots of tags", sets * ways, 1, contract.MAX_SLOTS)
    source = view(rows, "rows", on)
    require(source, INDEX, 1)
    shape = (source.size,)
    result, target = result_view(out, shape, np.int32, DTYPES["int32"], on, table, source)
    refuse_moved([table, source])
    keys = _keys(source, "rows", contract.EMPTY_TAG, on)
    kernels.cache_lookup(table, keys, target, on)
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
    out : float32, float16 or bfloat16 tensor (B, dim), or (N, dim) for "none", optional
        Sums are rounded to its type once.

    Returns
    -------
    numpy.ndarray, of out's shape, float32 without one

    Raises
    ------
    IndexError
        If an index is out of range.
    """
    mode = registry.choose("pooling", pooling, registry.POOLINGS)
    fmt = registry.choose("precision", precision, registry.FORMATS)
    dim = integer("dim", dim, 1, MAX_DIM)
    on, table = begin(rows, "rows", stream, captures.waits("embedding_bag"))
    packed_rows(table, precision, dim)
    given = None if out is None else view(out, "out", on)
    others = [table] if given is None else [table, given]
    batch = make_batch_of_one(indices, offsets, per_sample_weights, on, others)
    count = batch.num_indices if pooling == "none" else batch.batch_size
    read = [table, *batch.arguments()]
    result, target = result_view(out, (count, dim), np.float32, OUTPUT, on, *read, exported=given)
    group = kernels.Group(kernels.StepCounter(on, 0), 0, 1, dim, 0, 0)
    group.add_table(
        "rows", table.shape[0], table.address, table.shape[1], precision=fmt, pooling=mode
    )
    group.keep_alive(table)
    group.upload_descriptors(on)
    lookups = table_lookups(group, table.shape[0], batch, on)
    group.lookup(lookups, target, on)
    return result
