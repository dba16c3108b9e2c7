"""Stochastic rounding keeps the expectation; rounding to nearest breaks ties to even.

The exact tests add up all 65,536 random draws of the reference, whose bytes the package's are equal
to. The z-tests look at the package itself: with a right implementation, the chance that any of
their comparisons (fewer than 1,000) fails is below 1,000 x 1.3e-12 = 1.3e-9 for a fresh seed; the
seeds are fixed, so a pass is a pass for ever. A bias of 3 % of a step fails them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from reference import FORMATS, decode, draws16, encode_bits, header
from reference.formats import bf16_codes, bf16_values, fp16_codes
from reference.rounding import DOMAIN_OPS

import mpembed as mpe

INTEGER = [name for name, fmt in FORMATS.items() if fmt.header is not None]
SAMPLES = 1 << 15
Z = 7.1
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

ROWS = {
    "ordinary": [0.3, -1.7, 0.01, 2.9, -0.4, 1.1, -3.0, 0.77, 3.0],
    "small": [3.1e-4, -2.2e-4, 1.7e-5, 0.0, 5.1e-5, -9.9e-6, -1e-4],
    "half_subnormal": [6.1e-8, -4.1e-8, 1e-8, 3.3e-6, -5.9e-5, 6.05e-5, 2.9e-8, -1.1e-9],
    "far_from_zero": [1000.25, 1000.2502, 1000.2511, 1000.2519, 1000.2504],
    "very_far": [30000.0, 30000.002, 30000.004, 30000.01, 30000.0137],
    "float_subnormal": [1e-40, 3e-41, 7e-45, 2.1e-39, 0.0],
    "wide": [65504.0, -65504.0, 1.0, 12345.6, -0.001],
    "one_step": [2.0**-20, 2.0**-20 * (1 + 2.0**-23), 2.0**-20 * (1 + 2.0**-22)],
}


def grid_step(x: F32, precision: str, mirrored: bool = False) -> F64:
    """Distance of the two values between which a format rounds."""
    if precision == "fp32":
        return np.zeros(x.shape, np.float64)
    if precision == "fp16":
        return _power_of_two_below(x, 2.0**-14) * 2.0**-10
    if precision == "bf16":
        return _power_of_two_below(x, 2.0**-126) * 2.0**-7
    scale, _ = header(x[None], precision, np.array([mirrored]))
    # Where the scale is below a float's spacing, the neighbours are a spacing apart.
    return np.asarray(np.maximum(np.abs(scale[0]), np.spacing(np.abs(x))), np.float64)


def _power_of_two_below(x: F32, least: float) -> F64:
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(x).astype(np.float64), least))))


@pytest.mark.pairwise
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_expectation_over_all_draws_is_exact_to_2_to_the_minus_16(
    precision: str, row: str, mirrored: bool
) -> None:
    x = np.array(ROWS[row], np.float32)
    r = np.broadcast_to(np.arange(2**16)[:, None], (2**16, len(x)))
    data = encode_bits(np.tile(x, (2**16, 1)), precision, r, np.full(2**16, mirrored))
    values = decode(data, precision, len(x))
    # Sums of 2^16 floats of a few neighbouring values are exact in a double up to 2^-36.
    error = (values.astype(np.float64) - x).mean(axis=0)
    assert (np.abs(error) <= grid_step(x, precision, mirrored) * 2.0**-16).all()


@pytest.mark.parametrize("precision", list(mpe.registry.FORMATS))
@pytest.mark.parametrize("row", ROWS)
def test_the_package_is_unbiased(precision: str, row: str) -> None:
    x = np.array(ROWS[row], np.float32)
    data = mpe.ops.quantize(np.tile(x, (SAMPLES, 1)), precision, seed=17, step=3)
    check_unbiased(mpe.ops.dequantize(data, precision, len(x)), x, grid_step(x, precision))


def check_unbiased(values: F32, x: F32, step: F64) -> None:
    error = values.astype(np.float64) - x
    # A two-point variable cannot vary more than half its step.
    margin = Z * np.maximum(error.std(axis=0), step / 256) / np.sqrt(SAMPLES) + step * 2.0**-16
    assert (np.abs(error.mean(axis=0)) <= margin).all()
    assert (np.abs(error) <= 1.001 * step).all()


@pytest.mark.parametrize("precision", list(mpe.registry.FORMATS))
@pytest.mark.parametrize("row", ROWS)
def test_each_write_of_a_pair_is_unbiased(precision: str, row: str) -> None:
    x = np.array(ROWS[row], np.float32)
    table = mpe.TableConfig("t", SAMPLES, len(x), precision, init="zeros")
    emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(1.0), seed=17, rounding="paired")
    ids = np.arange(SAMPLES)
    for mirrored in (True, False):
        emb.set_rows("t", ids, np.tile(x, (SAMPLES, 1)))
        check_unbiased(np.asarray(emb.rows("t", ids)), x, grid_step(x, precision, mirrored))


def steps_of_two_updates(p: float, rounding: str) -> dict[int, float]:
    """Probabilities of the whole steps that two updates by p of a step add up to."""
    if rounding == "stochastic":
        return {0: (1 - p) ** 2, 1: 2 * p * (1 - p), 2: p**2}
    return {0: max(0, 1 - 2 * p), 1: 1 - abs(1 - 2 * p), 2: max(0, 2 * p - 1)}


@pytest.mark.parametrize("precision", INTEGER)
@pytest.mark.parametrize("p", [1 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4])
@pytest.mark.parametrize("rounding", ["stochastic", "paired"])
def test_the_sum_of_two_equal_updates(precision: str, p: float, rounding: str) -> None:
    """Of independent writes it varies by 2p(1-p), of a pair by 2p(1-2p), for p <= 1/2.

    Two columns keep the range at 0 .. L, so that a step is 1.
    """
    levels, rows, dim = FORMATS[precision].levels, 4096, 32
    ids = np.arange(rows)
    start = np.random.default_rng(0).integers(0, levels - 1, (rows, dim)).astype(np.float32)
    start[:, :2] = 0, levels
    # The first update doubles the row besides, because a pair begins where the range moves.
    half = start / 2
    weights = mpe.ops.quantize(half, precision, rounding="nearest")
    update = np.full_like(start, p)
    update[:, :2] = 0
    options: Any = {"precision": precision, "dim": dim, "rounding": rounding, "seed": 3}
    for step, grad in enumerate((-half - update, -update)):
        mpe.ops.sgd_(weights, ids, grad, lr=1.0, step=step, **options)
    steps = (mpe.ops.dequantize(weights, precision, dim) - start)[:, 2:]
    expected = steps_of_two_updates(p, rounding)
    assert set(np.unique(steps)) == {x for x, chance in expected.items() if chance > 0}
    mean = sum(x * chance for x, chance in expected.items())
    moment = [sum((x - mean) ** k * chance for x, chance in expected.items()) for k in range(5)]
    q = min(p, 1 - p)
    assert moment[2] == (2 * q * (1 - 2 * q) if rounding == "paired" else 2 * q * (1 - q))
    assert abs(steps.mean() - mean) <= Z * np.sqrt(moment[2] / steps.size)
    margin = Z * np.sqrt((moment[4] - moment[2] ** 2) / steps.size) + 1 / steps.size
    assert abs(steps.astype(np.float64).var() - moment[2]) <= margin


@pytest.mark.parametrize("precision", ["fp16", "bf16", *INTEGER])
def test_steps_and_seeds_and_columns_draw_apart(precision: str) -> None:
    x = np.full((1, 64), 0.3, np.float32)
    x[0, :2] = [0, 1]
    seen = {
        mpe.ops.quantize(x, precision, seed=seed, step=step).tobytes()
        for seed in (0, 1, 2**32, 2**63)
        for step in (0, 1, 2**32, 2**39)
    }
    # int8 has 61 columns that could each go two ways; chance repeats have probability below 1e-15.
    assert len(seen) == 16
    values = mpe.ops.dequantize(mpe.ops.quantize(x, precision), precision, 64)[0, 2:]
    assert len(set(values.tolist())) == 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(5,), (3, 1000), (2, 3, 777), (1, 1)])
def test_stochastic_round_equals_the_reference(precision: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-9, 3, shape)).astype(np.float32)
    got = np.asarray(mpe.ops.stochastic_round(x, precision, seed=5, step=2**33 + 1))
    flat = x.ravel()
    element = np.arange(flat.size)
    rows = draws16(5, DOMAIN_OPS, 0, np.arange(flat.size // 1024 + 1), 1024, 2**33 + 1)
    r = rows[element // 1024, element % 1024]
    expected = fp16_codes(flat, r) if precision == "fp16" else bf16_codes(flat, r)
    assert got.shape == shape
    assert np.ascontiguousarray(got).view(np.uint16).tobytes() == expected.tobytes()


def test_fp16_subnormal_remainders_round_half_up() -> None:
    # In units of 2^-16 of a subnormal step these are 65535.5, which section 2 makes 65536: every
    # draw gives one step. With 65535 one draw in 65,536 would give zero.
    x = np.full((1024, 1024), 65535.5 * 2.0**-40, np.float32)
    values = mpe.ops.dequantize(mpe.ops.quantize(x, "fp16", seed=2), "fp16", 1024)
    assert (values == np.float32(2.0**-24)).all()


def nearest(x: F32, precision: str) -> F32:
    data = mpe.ops.quantize(x, precision, rounding="nearest")
    values: F32 = mpe.ops.dequantize(data, precision, x.shape[1])
    return values


def test_nearest_fp16_is_ieee() -> None:
    rng = np.random.default_rng(1)
    codes = np.arange(0x7BFF, dtype=np.uint16)
    low, high = codes.view(np.float16), (codes + np.uint16(1)).view(np.float16)
    middle = (low.astype(np.float32) + high.astype(np.float32)) / 2
    x = np.concatenate([middle, -middle, np.nextafter(middle, np.float32(0))])
    x = np.concatenate([x, (rng.standard_normal(5000) * 1e-5).astype(np.float32)])[None]
    assert nearest(x, "fp16").tobytes() == x.astype(np.float16).astype(np.float32).tobytes()


def test_nearest_bf16_breaks_ties_to_even() -> None:
    codes = np.arange(0x7F7F, dtype=np.uint16)
    tie = ((codes.astype(np.uint32) << np.uint32(16)) | np.uint32(0x8000)).view(np.float32)
    even = codes + (codes & np.uint16(1))
    assert nearest(tie[None], "bf16")[0].tobytes() == bf16_values(even).tobytes()
    below = np.nextafter(tie, np.float32(0))
    above = np.nextafter(tie, np.float32(np.inf))
    assert nearest(below[None], "bf16")[0].tobytes() == bf16_values(codes).tobytes()
    assert nearest(above[None], "bf16")[0].tobytes() == bf16_values(codes + np.uint16(1)).tobytes()


@pytest.mark.parametrize("precision", INTEGER)
def test_nearest_code_is_the_closest_and_ties_go_to_even(precision: str) -> None:
    levels = FORMATS[precision].levels
    # With scale 1 and bias -1 every tie is exact.
    x = np.concatenate([[-1, levels - 1], np.arange(levels) - 0.5]).astype(np.float32)
    expected = [-1, levels - 1] + [2 * round(Fraction(2 * k + 1, 4)) - 1 for k in range(levels)]
    assert nearest(x[None], precision)[0].tolist() == expected
    rng = np.random.default_rng(4)
    y = rng.standard_normal((2000, 16)).astype(np.float32)
    scale, bias = header(y, precision)
    grid = bias[:, None, None] + scale[:, None, None] * np.arange(levels + 1)
    closest = np.abs(grid - y[:, :, None]).min(axis=2)
    assert (np.abs(nearest(y, precision) - y) <= closest + 1e-4 * scale[:, None]).all()


def test_nearest_does_not_depend_on_seed_or_step() -> None:
    x = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    for precision in mpe.registry.FORMATS:
        one = mpe.ops.quantize(x, precision, rounding="nearest", seed=0, step=0)
        other = mpe.ops.quantize(x, precision, rounding="nearest", seed=9, step=8)
        assert one.tobytes() == other.tobytes()
