"""The sums of the report on rounding, written once more from section 7 of `docs/numerics.md`."""

from __future__ import annotations

import numpy as np

from .formats import FORMATS, header
from .rounding import F32, I64, f32, fmaf

SAMPLE_BITS, FRACTION_BITS, MOST = 10, 30, 1024
# Mantissa bits, and the smallest biased exponent that a step belongs to.
PLAIN = {"fp16": (10, 113), "bf16": (7, 8)}
_M64 = (1 << 64) - 1


def is_sampled(table_id: int, row: int, step: int) -> bool:
    """Whether the write of a row of the whole table is measured."""
    z = ((table_id << 48) + row) * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03
    return (z & _M64) >> (64 - SAMPLE_BITS) == 0


def _units(squares: F32) -> int:
    """One row's sum."""
    limited = np.minimum(squares, np.float32(MOST)) * np.float32(2**FRACTION_BITS)
    return int(limited.astype(np.int64).sum()) // len(squares)


def _error(p: F32, rounding: str) -> F32:
    other = np.float32(1) - p
    nearer = np.minimum(p, other)
    return f32(nearer * nearer if rounding == "nearest" else p * other)


def _exponents(x: F32, precision: str) -> I64:
    bits = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)) >> np.uint32(23)
    return np.maximum(bits.astype(np.int64), PLAIN[precision][1])


def row_step(x: F32, precision: str) -> float:
    """Step of one row (D,); 0 where it has none."""
    if precision == "fp32":
        return 0.0
    if precision in PLAIN:
        exponent = int(_exponents(x, precision).max())
        return float(2.0 ** (exponent - PLAIN[precision][0] - 127))
    return float(header(x[None], precision)[0][0])


def _plain_noise(x: F32, precision: str, rounding: str) -> F32:
    mantissa = PLAIN[precision][0]
    exponents = _exponents(x, precision)
    steps = f32(np.ldexp(1.0, exponents - mantissa - 127))
    y = f32(np.abs(x) / steps)
    relative = steps / np.float32(row_step(x, precision))
    return f32(_error(f32(y - np.trunc(y)), rounding) * (relative * relative))


def _affine_noise(x: F32, precision: str, rounding: str) -> F32:
    (scale,), (bias,) = header(x[None], precision)
    k = np.trunc((x - bias) * (np.float32(1) / scale))
    k = np.clip(k, 0, FORMATS[precision].levels - 1).astype(np.float32)
    y0, y1 = fmaf(k, scale, bias), fmaf(k + np.float32(1), scale, bias)
    apart = y1 > y0
    p = np.where(apart, (x - y0) / np.where(apart, y1 - y0, np.float32(1)), np.float32(0))
    return _error(f32(np.clip(p, 0, 1)), rounding)


def rounding_sum(x: F32, precision: str, rounding: str) -> int:
    """Noise of writing the row to its table."""
    if row_step(x, precision) == 0:
        return 0
    noise = _plain_noise if precision in PLAIN else _affine_noise
    return _units(noise(x, precision, rounding))


def update_sums(x: F32, old: F32, precision: str) -> tuple[int, int]:
    """Rows and update that the change of a row counts."""
    step = row_step(x, precision)
    if step == 0:
        return 0, 0
    with np.errstate(over="ignore"):
        steps = (x - old) * (np.float32(1) / np.float32(step))
        return 1, _units(steps * steps)
