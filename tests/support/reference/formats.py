"""Row formats, written once more from section 2 of `docs/numerics.md`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .rounding import DOMAIN_ROW, F32, I64, U32, draws16, f32, fmaf, pair_draws

U8 = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Format:
    """What the layout of a row needs: bits a code, header type, largest magnitude of its range."""

    bits: int
    header: type[np.floating[Any]] | None
    max_abs: float

    @property
    def limit(self) -> float:
        """Largest magnitude of a value that can be stored."""
        return self.max_abs if self.header is None else self.max_abs * (1 + 2.0**-6)

    @property
    def levels(self) -> int:
        """Largest code of an integer format."""
        return (1 << self.bits) - 1

    def row_bytes(self, dim: int) -> int:
        """Bytes of one row, header included."""
        header = 0 if self.header is None else 2 * np.dtype(self.header).itemsize
        return (self.bits * dim + 7) // 8 + header


FORMATS = {
    "fp32": Format(32, None, float(np.finfo(np.float32).max)),
    "fp16": Format(16, None, 65504.0),
    "bf16": Format(16, None, float(np.uint32(0x7F7F0000).view(np.float32))),
    "int8": Format(8, np.float32, 2.0**126),
    "int8_fp16": Format(8, np.float16, 65504.0),
    "int4": Format(4, np.float16, 65504.0),
    "int2": Format(2, np.float16, 65504.0),
    "int6": Format(6, np.float16, 65504.0),
    "int5": Format(5, np.float16, 65504.0),
}


def storable(x: F32, precision: str) -> npt.NDArray[np.bool_]:
    """Rows whose every value is finite and at most the format's `limit`."""
    inside = np.abs(x) <= np.float32(FORMATS[precision].limit)
    return np.asarray(inside.all(axis=1))


def fp16_codes(x: F32, r: I64 | None) -> npt.NDArray[np.uint16]:
    """FP16 bits of `x`; `r` are the 16-bit draws, None rounds to nearest even."""
    if r is None:
        return x.astype(np.float16).view(np.uint16)
    a = np.abs(x)
    exponent = np.maximum((a.view(np.uint32) >> np.uint32(23)).astype(np.int64), 113)
    y = np.ldexp(a.astype(np.float64), 153 - exponent)
    t = np.trunc(y)
    f = t.astype(np.int64) + (y - t >= 0.5)
    code = ((exponent - 113) << 10) + ((f + r) >> 16)
    return np.asarray(code + np.where(np.signbit(x), 0x8000, 0), np.uint16)


def bf16_codes(x: F32, r: I64 | None) -> npt.NDArray[np.uint16]:
    """BF16 bits of `x`; `r` are the 16-bit draws, None rounds to nearest even."""
    u = x.view(np.uint32).astype(np.int64)
    return ((u + (0x7FFF + ((u >> 16) & 1) if r is None else r)) >> 16).astype(np.uint16)


def bf16_values(codes: npt.NDArray[np.uint16]) -> F32:
    """Floats of BF16 bits."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _half_towards(x: F32, direction: float) -> F32:
    """Round to FP16 towards `direction` (an infinity)."""
    h = x.astype(np.float16)
    beyond = h.astype(np.float32) > x if direction < 0 else h.astype(np.float32) < x
    with np.errstate(over="ignore", under="ignore"):
        return np.where(beyond, np.nextafter(h, np.float16(direction)), h).astype(np.float32)


def header(x: F32, precision: str, mirrored: Flags | None = None) -> tuple[F32, F32]:
    """Scale and bias of each row as they are stored (as floats).

    A mirrored row's are those of its negative, negated.
    """
    if mirrored is not None:
        side = np.where(mirrored, np.float32(-1), np.float32(1))
        scale, bias = header(x * side[:, None], precision)
        return scale * side + np.float32(0), bias * side + np.float32(0)
    fmt = FORMATS[precision]
    assert fmt.header is not None
    levels = np.float32(fmt.levels)
    mn, mx = np.clip([x.min(axis=1), x.max(axis=1)], -fmt.max_abs, fmt.max_abs).astype(np.float32)
    mn = mn + np.float32(0)
    if fmt.header is np.float32:
        bias = mn
        scale = np.maximum((mx - bias) / levels, np.float32(2.0**-126))
    else:
        bias = _half_towards(mn, -np.inf) + np.float32(0)
        scale = _half_towards((mx - bias) / levels, np.inf)
    scale = np.where(mx == bias, np.float32(0), scale)
    while (short := fmaf(levels, scale, bias) < mx).any():
        up = np.nextafter(scale.astype(fmt.header), fmt.header(np.inf)).astype(np.float32)
        scale = np.where(short, up, scale)
    return scale, bias


def integer_codes(x: F32, scale: F32, bias: F32, levels: int, r: I64 | None) -> I64:
    """Codes of each value against the stored scale and bias; None rounds to nearest."""
    scale, bias = scale[:, None], bias[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        inv = np.float32(1) / scale
        k = np.trunc((x - bias) * inv)
    k = np.where(scale == 0, np.float32(0), np.clip(k, 0, levels - 1)).astype(np.float32)
    y0, y1 = fmaf(k, scale, bias), fmaf(k + np.float32(1), scale, bias)
    apart = y1 != y0
    p = np.where(apart, (x - y0) / np.where(apart, y1 - y0, np.float32(1)), np.float32(0))
    low = k.astype(np.int64)
    if r is None:
        code = low + ((p > 0.5) | ((p == 0.5) & (low % 2 == 1)))
    else:
        f = np.rint(p * np.float32(65536)).astype(np.int64)
        code = low + ((f + r) >> 16)
    return np.where(scale == 0, 0, np.clip(code, 0, levels))


def pack(codes: I64, bits: int) -> U8:
    """Codes to bytes, the first code in the lowest bits, pad bits zero."""
    each = np.unpackbits(codes.astype(np.uint8)[..., None], axis=2, count=bits, bitorder="little")
    return np.packbits(each.reshape(len(codes), codes.shape[1] * bits), axis=1, bitorder="little")


def unpack(data: U8, bits: int, dim: int) -> I64:
    """Inverse of `pack`."""
    each = np.unpackbits(data, axis=1, count=dim * bits, bitorder="little")
    codes = np.packbits(each.reshape(len(data), dim, bits), axis=2, bitorder="little")
    return codes[:, :, 0].astype(np.int64)


def _bytes(a: npt.NDArray[np.generic]) -> U8:
    """Little-endian bytes of each row of `a`."""
    little = np.ascontiguousarray(a.astype(a.dtype.newbyteorder("<")))
    return little.view(np.uint8).reshape(len(a), -1)


def encode_bits(x: object, precision: str, r: I64 | None, mirrored: Flags | None = None) -> U8:
    """Bytes of each row, with the 16-bit draws given (None: nearest)."""
    x = np.atleast_2d(f32(x))
    fmt = FORMATS[precision]
    if not storable(x, precision).all():
        raise ValueError(f"a row cannot be stored as {precision}")
    if len(x) == 0:
        return np.zeros((0, fmt.row_bytes(x.shape[1])), np.uint8)
    if precision == "fp32":
        return _bytes(x)
    if precision == "fp16":
        return _bytes(fp16_codes(x, r))
    if precision == "bf16":
        return _bytes(bf16_codes(x, r))
    scale, bias = header(x, precision, mirrored)
    codes = integer_codes(x, scale, bias, fmt.levels, r)
    return np.concatenate([pack(codes, fmt.bits), _header_bytes(scale, bias, fmt)], axis=1)


def _header_bytes(scale: F32, bias: F32, fmt: Format) -> U8:
    assert fmt.header is not None
    return _bytes(np.stack([scale, bias], axis=1).astype(fmt.header))


def nonce(headers: U8) -> U32:
    """What a pair of writes is known by: the bytes of the header that its first one stored."""
    words = np.ascontiguousarray(headers).view("<u4").astype(np.uint32)
    if words.shape[1] == 1:
        return words[:, 0]
    return np.asarray(words[:, 0] ^ (words[:, 1] * np.uint32(0x9E3779B9)))


def pair_writes(x: F32, headers: U8, fmt: Format) -> tuple[Flags, Flags]:
    """Which rows are written as the second of a pair, and which as the first.

    `headers` are those of the rows that they overwrite.
    """
    assert fmt.header is not None
    head = np.ascontiguousarray(headers).view(fmt.header).astype(np.float32)
    scale, bias = head[:, 0], head[:, 1]
    second = np.signbit(scale)
    with np.errstate(all="ignore"):
        top = fmaf(np.float32(fmt.levels), scale, bias)
        moved = np.maximum(np.abs(x.min(axis=1) - bias), np.abs(x.max(axis=1) - top))
        rounded = (np.maximum(-bias, top) + (top - bias)) * np.finfo(fmt.header).eps
        single = (scale * np.float32(2.0**-6) > moved) | (rounded.astype(np.float32) > moved)
    return second, ~second & ~single


def encode(
    x: object,
    precision: str,
    rounding: str = "stochastic",
    *,
    seed: int = 0,
    step: int = 0,
    table: int = 0,
    rows: object = None,
    domain: int = DOMAIN_ROW,
    old: U8 | None = None,
) -> U8:
    """Bytes of each row of `x`; `rows` are the row numbers that key the random bits.

    `old` are the rows that these overwrite; paired rounding has nothing to pair with without them.
    """
    x = np.atleast_2d(f32(x))
    rows = np.arange(len(x)) if rows is None else rows
    dim, fmt = x.shape[1], FORMATS[precision]
    if rounding == "nearest":
        return encode_bits(x, precision, None)
    if rounding == "stochastic" or old is None or fmt.header is None or len(x) == 0:
        return encode_bits(x, precision, draws16(seed, domain, table, rows, dim, step))
    before = old[:, (fmt.bits * dim + 7) // 8 :]
    second, first = pair_writes(x, before, fmt)
    after = _header_bytes(*header(x, precision, first), fmt)
    nonces = np.where(second, nonce(before), nonce(after))
    single = draws16(seed, domain, table, rows, dim, step)
    paired = pair_draws(seed, table, rows, dim, step, nonces)
    r = np.where((first | second)[:, None], paired, single)
    return encode_bits(x, precision, r, first)


def decode(data: U8, precision: str, dim: int) -> F32:
    """Floats of each encoded row."""
    fmt = FORMATS[precision]
    data = np.ascontiguousarray(data)
    if precision == "fp32":
        return data.view("<f4").astype(np.float32)
    if precision == "fp16":
        return data.view("<f2").astype(np.float32)
    if precision == "bf16":
        return bf16_values(data.view("<u2").astype(np.uint16))
    assert fmt.header is not None
    size = (fmt.bits * dim + 7) // 8
    head = np.ascontiguousarray(data[:, size:]).view(fmt.header).astype(np.float32)
    codes = unpack(data[:, :size], fmt.bits, dim).astype(np.float32)
    return fmaf(codes, head[:, :1], head[:, 1:])
