"""The conversions of ``mpembed.ops``: quantize, dequantize, bit packing, stochastic rounding."""

from typing import Any

import numpy as np

from mpembed import registry
from mpembed._arguments import captures
from mpembed._arguments.arrays import (
    BYTE,
    FLOAT,
    begin,
    draw_key,
    packed_rows,
    result_view,
    storable,
)
from mpembed._arguments.scalars import integer
from mpembed._bindings import kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.view import DTYPES, View, require
from mpembed.registry import MAX_DIM


def _matrix(
    values: Any, name: str, kinds: int, stream: Any, call: str
) -> tuple[Stream, View, int, int]:
    on, checked = begin(values, name, stream, captures.waits(call))
    require(checked, kinds, 2)
    rows, dim = checked.shape
    integer(f"columns of {name}", dim, 1, MAX_DIM)
    return on, checked, rows, dim


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
    fmt = registry.choose("precision", precision, registry.FORMATS)
    if rounding == "paired":
        raise ValueError(
            "rounding='paired' is not supported: quantize writes new rows, and a pair needs a row "
            "that was there before; use rounding='stochastic'"
        )
    mode = registry.choose("rounding", rounding, registry.ROUNDINGS_OF_NEW_ROWS)
    seed, step = draw_key(seed, step)
    on, source, rows, dim = _matrix(x, "x", FLOAT, stream, "quantize")
    shape = rows, registry.row_bytes(precision, dim)
    result, target = result_view(out, shape, np.uint8, BYTE, on, source)
    storable(source, rows, dim, precision, "x", on)
    kernels.quantize(source, rows, dim, fmt, mode, seed, step, target, on)
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
    fmt = registry.choose("precision", precision, registry.FORMATS)
    dim = integer("dim", dim, 1, MAX_DIM)
    on, source = begin(rows, "rows", stream, captures.needs_out("dequantize", out))
    n = packed_rows(source, precision, dim).shape[0]
    result, target = result_view(out, (n, dim), np.float32, FLOAT, on, source)
    kernels.dequantize(source, n, dim, fmt, target, on)
    return result


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
    on, source, rows, dim = _matrix(codes, "codes", BYTE, stream, f"pack_int{bits}")
    result, target = result_view(out, (rows, -(-dim * bits // 8)), np.uint8, BYTE, on, source)
    found = kernels.oversized_code(source, bits, on)
    if found is not None:
        raise ValueError(f"codes must be below {1 << bits}, got {found[1]} at {found[0]}")
    kernels.pack_codes(source, rows, dim, bits, target, on)
    return result


def _unpack(packed: Any, dim: int, bits: int, out: Any, stream: Any) -> Any:
    dim = integer("dim", dim, 1, MAX_DIM)
    on, source = begin(packed, "packed", stream, captures.needs_out(f"unpack_int{bits}", out))
    require(source, BYTE, 2)
    rows, width = source.shape
    if width != -(-dim * bits // 8):
        raise ValueError(f"packed must have {-(-dim * bits // 8)} bytes a row, got {width}")
    result, target = result_view(out, (rows, dim), np.uint8, BYTE, on, source)
    kernels.unpack_codes(source, rows, dim, bits, target, on)
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
    kinds = {"fp16": DTYPES["float16"], "bf16": DTYPES["bfloat16"] | DTYPES["uint16"]}
    registry.choose("precision", precision, dict.fromkeys(kinds, 0))
    seed, step = draw_key(seed, step)
    on, source = begin(x, "x", stream, captures.waits("stochastic_round"))
    require(source, FLOAT)
    dtype = np.float16 if precision == "fp16" else np.uint16
    result, target = result_view(out, source.shape, dtype, kinds[precision], on, source)
    storable(source, source.size, 1, precision, "x", on, "element")
    fmt = registry.FORMATS[precision]
    kernels.stochastic_round(source, source.size, fmt, seed, step, target, on)
    return result
