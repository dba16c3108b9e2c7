"""`x^p` for `x >= 0` and `0 <= p <= 1`, step by step as section 5 of `docs/numerics.md` says."""

from __future__ import annotations

import numpy as np

from .rounding import F32, I64, f32, fmaf, horner

_LOG = [float(np.float32(1) / np.float32(n)) for n in (11, 9, 7, 5, 3, 1)]
_EXP = [1.54035304e-4, 1.33335581e-3, 9.61812911e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1, 1]


def log2_of(x: F32) -> tuple[I64, F32]:
    """Base-2 logarithm of positive floats: a whole number and a rest within +-0.5."""
    tiny = x < np.float32(1.17549435e-38)
    bits = np.where(tiny, x * np.float32(2**24), x).view(np.int32).astype(np.int64)
    e = (bits - 0x3F3504F3) >> 23
    m = (bits - (e << 23)).astype(np.uint32).view(np.float32)
    t = (m - np.float32(1)) / (m + np.float32(1))
    series = horner(t * t, _LOG)
    return np.where(tiny, e - 24, e), (t + t) * series * np.float32(1.44269504)


def power(x: F32, p: np.float32) -> F32:
    """Elements of `x` to the power of `p`."""
    x = f32(x)
    if p == 0.5:
        return f32(np.sqrt(x))
    if p == 0:
        return np.ones_like(x)
    usable = np.isfinite(x) & (x > 0)  # what is not finite is never stored
    whole, rest = log2_of(np.where(usable, x, np.float32(1)))
    k = np.rint(fmaf(p, f32(whole), rest * p)).astype(np.int64).clip(-126, 127)
    f = fmaf(rest, p, fmaf(p, f32(whole), -f32(k)))
    y = horner(f, _EXP).view(np.int32).astype(np.int64) + (k << 23)
    # Below, the exponent has no room for k.
    result = np.where(k > -126, y, 0).astype(np.uint32).view(np.float32)
    return np.where(usable, result, np.where(x > 0, np.float32(np.inf), np.float32(0)))
