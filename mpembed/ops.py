"""Stateless kernels on any DLPack tensor in CPU memory.

Inputs are read in place and must be C-contiguous; results are NumPy arrays, or `out`, which may be
any writable DLPack tensor and is returned. `stream` is for devices and must be None on the CPU.
Rounding and layouts: ``docs/numerics.md``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import _cpu, registry
from mpembed._checks import integer
from mpembed._dlpack import view
from mpembed._inputs import FLOAT, INDEX, draw_key, make_batch_of_one, no_stream, storable
from mpembed._sparse_ops import adagrad_, rowwise_adagrad_, sgd_
from mpembed._view import DTYPES, View, require
from mpembed.config import MAX_DIM

Array = npt.NDArray[Any]
_U8 = DTYPES["uint8"]

__all__ = [
    "adagrad_",
    "cache_lookup",
    "dequantize",
    "embedding_bag",
    "pack_int2",
    "pack_int4",
    "quantize",
    "rowwise_adagrad_",
    "sgd_",
    "stochastic_round",
    "unique_rows",
    "unpack_int2",
    "unpack_int4",
]


def _result(out: Any, shape: tuple[int, ...], dtype: Any, kinds: int) -> tuple[Any, View]:
    """Return `out` or a new array, and its view."""
    result = np.empty(shape, dtype) if out is None else out
    checked = view(result, "out")
    require(checked, kinds, len(shape), shape, writable=True)
    return result, checked


def _matrix(values: Any, name: str, kinds: int) -> tuple[View, int, int]:
    checked = view(values, name)
    require(checked, kinds, 2)
    rows, dim = checked.shape
    integer(f"columns of {name}", dim, 1, MAX_DIM)
    return checked, rows, dim


def quantize(
    x: Any,
    precision: str,
    *,
    rounding: str = "stochastic",
    seed: int = 0,
    step: int = 0,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Encode rows.

    Parameters
    ----------
    x : float32 tensor (rows, D)
        Finite and within the precision's range.
    precision : str
        A key of ``mpembed.registry.FORMATS``.
    rounding : str
        ``"stochastic"`` or ``"nearest"`` (ties to even).
    seed, step : int
        Key of the random bits: row i, column c draws the same bits wherever it is computed.
    out : uint8 tensor (rows, row_bytes), optional

    Returns
    -------
    numpy.ndarray (rows, row_bytes), uint8

    Raises
    ------
    ValueError
        If a row is not finite or exceeds the range; nothing is written.
    """
    no_stream(stream)
    fmt = registry.choose("precision", precision, registry.FORMATS)
    mode = registry.choose("rounding", rounding, registry.ROUNDINGS)
    seed, step = draw_key(seed, step)
    source, rows, dim = _matrix(x, "x", FLOAT)
    result, target = _result(out, (rows, registry.row_bytes(precision, dim)), np.uint8, _U8)
    storable(source, rows, dim, precision, "x")
    _cpu.quantize(source, rows, dim, fmt, mode, seed, step, target)
    return result


def dequantize(rows: Any, precision: str, dim: int, *, out: Any = None, stream: Any = None) -> Any:
    """Decode rows.

    Parameters
    ----------
    rows : uint8 tensor (rows, row_bytes)
    precision : str
        A key of ``mpembed.registry.FORMATS``.
    dim : int
        D, the number of columns.
    out : float32 tensor (rows, D), optional

    Returns
    -------
    numpy.ndarray (rows, D), float32
    """
    no_stream(stream)
    fmt = registry.choose("precision", precision, registry.FORMATS)
    dim = integer("dim", dim, 1, MAX_DIM)
    source = _packed(rows, precision, dim)
    n = source.shape[0]
    result, target = _result(out, (n, dim), np.float32, FLOAT)
    _cpu.dequantize(source, n, dim, fmt, target)
    return result


def _packed(rows: Any, precision: str, dim: int) -> View:
    source = view(rows, "rows")
    require(source, _U8, 2)
    width = registry.row_bytes(precision, dim)
    if source.shape[1] != width:
        raise ValueError(
            f"rows must have {width} bytes a row ({precision}, dim {dim}), got {source.shape[1]}"
        )
    return source


def pack_int4(codes: Any, *, out: Any = None, stream: Any = None) -> Any:
    """Pack uint8 codes 0..15 (rows, D) into (rows, ceil(D / 2)) bytes, low nibble first.

    Raises
    ------
    ValueError
        If a code exceeds 15.
    """
    return _pack(codes, 4, out, stream)


def pack_int2(codes: Any, *, out: Any = None, stream: Any = None) -> Any:
    """Pack uint8 codes 0..3 (rows, D) into (rows, ceil(D / 4)) bytes, lowest bits first.

    Raises
    ------
    ValueError
        If a code exceeds 3.
    """
    return _pack(codes, 2, out, stream)


def unpack_int4(packed: Any, dim: int, *, out: Any = None, stream: Any = None) -> Any:
    """Unpack (rows, ceil(dim / 2)) bytes into uint8 codes (rows, dim)."""
    return _unpack(packed, dim, 4, out, stream)


def unpack_int2(packed: Any, dim: int, *, out: Any = None, stream: Any = None) -> Any:
    """Unpack (rows, ceil(dim / 4)) bytes into uint8 codes (rows, dim)."""
    return _unpack(packed, dim, 2, out, stream)


def _pack(codes: Any, bits: int, out: Any, stream: Any) -> Any:
    no_stream(stream)
    source, rows, dim = _matrix(codes, "codes", _U8)
    largest = int(np.asarray(source).max(initial=0))
    if largest >= 1 << bits:
        raise ValueError(f"codes must be below {1 << bits}, got {largest}")
    result, target = _result(out, (rows, -(-dim * bits // 8)), np.uint8, _U8)
    _cpu.pack_codes(source, rows, dim, bits, target)
    return result


def _unpack(packed: Any, dim: int, bits: int, out: Any, stream: Any) -> Any:
    no_stream(stream)
    dim = integer("dim", dim, 1, MAX_DIM)
    source = view(packed, "packed")
    require(source, _U8, 2)
    rows, width = source.shape
    if width != -(-dim * bits // 8):
        raise ValueError(f"packed must have {-(-dim * bits // 8)} bytes a row, got {width}")
    result, target = _result(out, (rows, dim), np.uint8, _U8)
    _cpu.unpack_codes(source, rows, dim, bits, target)
    return result


def stochastic_round(
    x: Any, precision: str, *, seed: int = 0, step: int = 0, out: Any = None, stream: Any = None
) -> Any:
    """Round float32 to FP16 or BF16 so that the expectation is the value.

    Parameters
    ----------
    x : float32 tensor, any shape
        Finite and within the precision's range.
    precision : str
        ``"fp16"`` or ``"bf16"``.
    seed, step : int
        Key of the random bits.
    out : tensor of x's shape, optional
        float16 for fp16; bfloat16 or uint16 (bit patterns) for bf16.

    Returns
    -------
    numpy.ndarray of x's shape
        float16, or uint16 bit patterns for bf16, which NumPy does not have.
    """
    no_stream(stream)
    kinds = {"fp16": DTYPES["float16"], "bf16": DTYPES["bfloat16"] | DTYPES["uint16"]}
    registry.choose("precision", precision, dict.fromkeys(kinds, 0))
    seed, step = draw_key(seed, step)
    source = view(x, "x")
    require(source, FLOAT)
    dtype = np.float16 if precision == "fp16" else np.uint16
    result, target = _result(out, source.shape, dtype, kinds[precision])
    storable(source, source.size, 1, precision, "x", "element")
    fmt = registry.FORMATS[precision]
    _cpu.stochastic_round(source, source.size, fmt, seed, step, target)
    return result


def unique_rows(indices: Any, *, stream: Any = None) -> tuple[Array, Array, Array]:
    """Find the unique values of row indices.

    Parameters
    ----------
    indices : int32 or int64 tensor (N,)
        All >= 0.

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
    integer("the number of indices", len(keys), 0, 2**31 - 1)
    rows, starts, positions = _cpu.unique_keys(keys)
    return rows.view(np.int64), starts, positions


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
    result, target = _result(out, (len(keys),), np.int32, DTYPES["int32"])
    _cpu.cache_lookup(table, keys, target)
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
    table = _packed(rows, precision, dim)
    batch = make_batch_of_one(indices, offsets, per_sample_weights)
    count = batch.num_indices if pooling == "none" else batch.batch_size
    result, target = _result(out, (count, dim), np.float32, FLOAT)
    group = _cpu.Group(1, dim, 0, 0)
    group.add_table("rows", table, None, None, fmt, 0, mode, 0, 0)
    group.lookup(group.prepare(batch, False), None, target)
    return result
