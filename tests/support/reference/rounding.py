"""Exact `fmaf`, Philox bits, lane tree, initial values: sections 1, 3 and 5 of the numerics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

DOMAIN_ROW, DOMAIN_STATE, DOMAIN_INIT, DOMAIN_OPS, DOMAIN_SECOND_STATE, DOMAIN_PAIR = range(6)
PAIR_STEPS = 1024
BLOCK = 64
LANES = 32


def f32(x: object) -> F32:
    """`x` as float32 (rounded to nearest even)."""
    return np.asarray(x, dtype=np.float32)


def fmaf(a: object, b: object, c: object) -> F32:
    """`a * b + c` rounded once to float32.

    The product of two floats is exact in a double. The sum is rounded to odd (its last bit is a
    sticky bit), after which the rounding to float32 is the rounding of the exact value.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(f32(a), np.float64) * np.asarray(f32(b), np.float64)
        addend = np.asarray(f32(c), np.float64)
        total = np.asarray(product + addend)
        part = total - product
        error = (product - (total - part)) + (addend - part)
        bits = total.view(np.int64).copy()
        inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
        away = (error > 0) == (total > 0)
        bits += np.where(inexact, np.where(away, 1, -1), 0)
        return bits.view(np.float64).astype(np.float32)


def philox4x32(counter: tuple[Array, Array, Array, Array], key: int) -> tuple[U32, U32, U32, U32]:
    """Philox4x32-10 (Salmon et al. 2011) of four counter words and a 64-bit key."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (x.astype(np.uint64) & mask for x in np.broadcast_arrays(*counter))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))  # type: ignore[return-value]


def _words(seed: int, domain: int, table: int, rows: object, blocks: I64, step: object) -> U32:
    """Output words for each row and column block: shape (rows, blocks, 4).

    `step` is a number or one for each row.
    """
    row = np.asarray(rows, dtype=np.uint64)[:, None]
    at = np.asarray(step, dtype=np.uint64).reshape(-1, 1)
    high = (at >> np.uint64(32)) << np.uint64(24)
    c0 = blocks.astype(np.uint64)[None, :] | np.uint64(domain << 20) | high
    c1 = row & np.uint64(0xFFFFFFFF)
    c2 = (row >> np.uint64(32)) | np.uint64(table << 16)
    c3 = at & np.uint64(0xFFFFFFFF)
    return np.stack(philox4x32((c0, c1, c2, c3), seed), axis=-1)


def draws16(seed: int, domain: int, table: int, rows: object, dim: int, step: object) -> I64:
    """The 16-bit draw of each row and column: shape (rows, dim)."""
    words = _words(seed, domain, table, rows, np.arange((dim + 7) // 8), step)
    column = np.arange(dim)
    word = words[:, column // 8, (column % 8) // 2].astype(np.int64)
    return np.where(column % 2 == 0, word & 0xFFFF, word >> 16)


def pair_draws(seed: int, table: int, rows: object, dim: int, step: int, nonces: U32) -> I64:
    """The 16-bit draws of each row's pair of writes, which `nonces` tell apart."""
    piece = np.uint64(step // PAIR_STEPS % 256)
    key = (piece << np.uint64(32)) | nonces.astype(np.uint64)
    return draws16(seed, DOMAIN_PAIR, table, rows, dim, key)


def draws24(seed: int, table: int, rows: object, dim: int) -> I64:
    """The 24-bit draw of each row and column for the initial values: shape (rows, dim)."""
    words = _words(seed, DOMAIN_INIT, table, rows, np.arange((dim + 3) // 4), 0)
    column = np.arange(dim)
    return (words[:, column // 4, column % 4] >> np.uint32(8)).astype(np.int64)


def lane_dot(a: F32, b: F32) -> F32:
    """Dot product of the rows of `a` and `b` by the tree of 32 lanes: shape (rows,)."""
    rows, dim = a.shape
    lanes = np.zeros((rows, LANES), np.float32)
    for start in range(0, dim, LANES):
        width = min(LANES, dim - start)
        lanes[:, :width] = fmaf(
            a[:, start : start + width], b[:, start : start + width], lanes[:, :width]
        )
    s = LANES // 2
    while s:
        lanes[:, :s] = lanes[:, :s] + lanes[:, s : 2 * s]
        s //= 2
    return lanes[:, 0].copy()


def horner(x: F32, coefficients: list[float]) -> F32:
    """Polynomial with coefficients from the highest power down, each step one `fmaf`."""
    value = np.broadcast_to(f32(coefficients[0]), x.shape)
    for c in coefficients[1:]:
        value = fmaf(value, x, c)
    return value


def log32(u: F32) -> F32:
    """Natural logarithm of normal positive floats, as section 3 writes it."""
    bits = u.view(np.uint32)
    e = (bits >> np.uint32(23)).astype(np.int64) - 127
    m = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
    big = m > np.float32(1.41421356)
    m = np.where(big, m * np.float32(0.5), m)
    e = e + big
    t = (m - np.float32(1)) / (m + np.float32(1))
    q = horner(t * t, [1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0])
    return fmaf(e.astype(np.float32), np.float32(0.69314718), (t + t) * q)


_CENTRE = [2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087]
_CENTRE += [-0.00125372503, -0.00417768164, 0.246640727, 1.50140941]
_TAIL = [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773]
_TAIL += [-0.0076224613, 0.00943887047, 1.00167406, 2.83297682]


def normal_from_draw(k: I64, std: float) -> F32:
    """Normal variates from 24-bit draws (Giles' inverse error function)."""
    v = (2 * k + 1 - 2**24).astype(np.float32) * np.float32(2.0**-24)
    w = -log32((np.float32(1) - v) * (np.float32(1) + v))
    centre = horner(w - np.float32(2.5), _CENTRE)
    tail = horner(np.sqrt(np.maximum(w, np.float32(0))) - np.float32(3), _TAIL)
    p = np.where(w < np.float32(5), centre, tail)
    x: F32 = np.float32(std) * (np.float32(1.41421356) * (p * v))
    return x


def state_domain(i: int) -> int:
    """Domain of the writes of an optimizer's state number `i`."""
    return DOMAIN_STATE if i == 0 else DOMAIN_SECOND_STATE


def initial_values(
    init: object, seed: int, table: int, rows: I64, dim: int, total_rows: int
) -> F32:
    """Values of a table's initial rows of these numbers, before they go through its format."""
    if init == "zeros":
        return np.zeros((len(rows), dim), np.float32)
    if init is None:
        hi = float(np.float32(1 / np.sqrt(np.float64(max(1, total_rows)))))
        init = ("uniform", -hi, hi)
    assert isinstance(init, (tuple, list))
    k = draws24(seed, table, rows, dim)
    if init[0] == "normal":
        return normal_from_draw(k, init[1])
    lo, hi32 = np.float32(init[1]), np.float32(init[2])
    return fmaf(k.astype(np.float32) * np.float32(2.0**-24), hi32 - lo, lo)
