"""Rows of every format: the bytes of the reference, and the facts that users rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from difficult_rows import KINDS, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import FORMATS, decode, encode, header
from reference.pair import assert_same

import mpembed as mpe

NAMES = list(mpe.registry.FORMATS)
INTEGER = [name for name in NAMES if FORMATS[name].header is not None]
ROUNDINGS = list(mpe.registry.ROUNDINGS_OF_NEW_ROWS)
F32 = npt.NDArray[np.float32]

formats = pytest.mark.parametrize("precision", NAMES)
integers = pytest.mark.parametrize("precision", INTEGER)
roundings = pytest.mark.parametrize("rounding", ROUNDINGS)


def compare(x: F32, precision: str, rounding: str, seed: int, step: int) -> None:
    got = mpe.ops.quantize(x, precision, rounding=rounding, seed=seed, step=step)
    expected = encode(x, precision, rounding, seed=seed, step=step)
    assert_same(got, expected, f"{precision} {rounding}")
    dim = x.shape[1]
    values = mpe.ops.dequantize(got, precision, dim)
    assert_same(values, decode(expected, precision, dim), f"{precision} decoded")


@formats
@roundings
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 4),
    dim=st.integers(1, 300),
    draw=st.integers(0, 2**32),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**40 - 1),
)
@settings(max_examples=120, deadline=None)
def test_bytes_equal_the_reference(
    precision: str, rounding: str, kind: str, rows: int, dim: int, draw: int, seed: int, step: int
) -> None:
    rng = np.random.default_rng(draw)
    x = rows_of(kind, rng, rows, dim, FORMATS[precision].limit)
    compare(x, precision, rounding, seed, step)


@formats
@roundings
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_equal_the_reference_for_chosen_floats(
    precision: str, rounding: str, data: st.DataObject
) -> None:
    limit = FORMATS[precision].limit
    number = st.floats(-limit, limit, width=32)
    row = data.draw(st.lists(number, min_size=1, max_size=9))
    compare(np.array([row], np.float32), precision, rounding, 1, 2)


@pytest.mark.pairwise
@formats
@roundings
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_equal_the_reference_at_every_dimension(
    precision: str, rounding: str, kind: str
) -> None:
    rng = np.random.default_rng(7)
    for dim in [*range(1, 36), 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]:
        x = rows_of(kind, rng, 3, dim, FORMATS[precision].limit)
        compare(x, precision, rounding, 11, dim)


@formats
@roundings
def test_many_rows_of_all_kinds(precision: str, rounding: str) -> None:
    """Rows are encoded several at a time, and very long ones in parts."""
    rng = np.random.default_rng(8)
    for dim, each in ((1, 9), (8, 7), (16, 5), (65, 5), (2048, 2), (2064, 2), (4101, 1)):
        limit = FORMATS[precision].limit
        x = np.concatenate([rows_of(kind, rng, each, dim, limit) for kind in KINDS])
        compare(x[rng.permutation(len(x))], precision, rounding, 11, dim)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_16_bit_pattern_decodes_and_encodes_back(precision: str) -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    values = mpe.ops.dequantize(codes.view(np.uint8).reshape(1, -1), precision, 2**16)
    assert_same(values, decode(codes.view(np.uint8).reshape(1, -1), precision, 2**16), precision)
    ok = np.abs(values[0]) <= np.float32(FORMATS[precision].max_abs)
    for rounding in ROUNDINGS:
        again = mpe.ops.quantize(values[:, ok], precision, rounding=rounding, seed=3)
        assert again.tobytes() == codes[ok].tobytes()


@integers
def test_any_codes_under_any_finite_header_decode(precision: str) -> None:
    rng = np.random.default_rng(5)
    fmt = FORMATS[precision]
    assert fmt.header is not None
    for dim in (1, 2, 3, 7, 64, 65, 300):
        data = rng.integers(0, 256, (50, fmt.row_bytes(dim))).astype(np.uint8)
        head = rng.standard_normal((50, 2)) * 10.0 ** rng.uniform(-7, 3, (50, 2))
        size = 2 * np.dtype(fmt.header).itemsize
        data[:, -size:] = head.astype(fmt.header).view(np.uint8)
        got = mpe.ops.dequantize(data, precision, dim)
        assert_same(got, decode(data, precision, dim), f"{precision} {dim}")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", lambda d: 4 * d),
        ("fp16", lambda d: 2 * d),
        ("bf16", lambda d: 2 * d),
        ("int8", lambda d: d + 8),
        ("int8_fp16", lambda d: d + 4),
        ("int4", lambda d: (d + 1) // 2 + 4),
        ("int2", lambda d: (d + 3) // 4 + 4),
        ("int6", lambda d: (3 * d + 3) // 4 + 4),
        ("int5", lambda d: (5 * d + 7) // 8 + 4),
    ],
)
def test_bytes_of_a_row(precision: str, expected: Any) -> None:
    for dim in (1, 2, 3, 4, 5, 7, 8, 31, 300):
        got = mpe.ops.quantize(np.ones((2, dim), np.float32), precision)
        assert got.shape == (2, expected(dim))
        assert got.dtype == np.uint8


def test_every_registered_format_has_a_reference() -> None:
    assert sorted(NAMES) == sorted(FORMATS)


def test_int8_layout_is_codes_scale_bias() -> None:
    x = np.array([[-1, 254, 0, 41]], np.float32)
    got = mpe.ops.quantize(x, "int8", rounding="nearest")[0]
    assert got[:4].tolist() == [0, 255, 1, 42]
    assert got[4:].view("<f4").tolist() == [1.0, -1.0]


def test_int4_layout_is_low_nibble_first_and_pads_with_zero() -> None:
    x = np.array([[0, 15, 3, 10, 7]], np.float32)
    got = mpe.ops.quantize(x, "int4", rounding="nearest")[0]
    assert got[:3].tolist() == [0xF0, 0xA3, 0x07]
    assert got[3:].view("<f2").tolist() == [1.0, 0.0]


def test_int2_layout_is_lowest_bits_first_and_pads_with_zero() -> None:
    x = np.array([[3, 0, 1, 2, 3]], np.float32)
    got = mpe.ops.quantize(x, "int2", rounding="nearest")[0]
    assert got[:2].tolist() == [0b10_01_00_11, 0b11]
    assert got[2:].view("<f2").tolist() == [1.0, 0.0]


def test_int6_codes_follow_one_another_from_the_lowest_bit_and_pad_with_zero() -> None:
    x = np.array([[63, 0, 33, 1, 62]], np.float32)
    got = mpe.ops.quantize(x, "int6", rounding="nearest")[0]
    assert got[:4].tolist() == [0b00_111111, 0b0001_0000, 0b000001_10, 0b00_111110]
    assert got[4:].view("<f2").tolist() == [1.0, 0.0]


def test_int5_codes_follow_one_another_from_the_lowest_bit_and_pad_with_zero() -> None:
    x = np.array([[31, 0, 17, 1, 30]], np.float32)
    got = mpe.ops.quantize(x, "int5", rounding="nearest")[0]
    assert got[:4].tolist() == [0b000_11111, 0b1_10001_00, 0b1110_0000, 0b1]
    assert got[4:].view("<f2").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("precision", "dim", "mask"),
    [("int4", 7, 0xF0), ("int2", 9, 0xFC), ("int6", 7, 0xFC), ("int5", 7, 0xF8)],
)
def test_pad_bits_stay_zero_under_stochastic_rounding(precision: str, dim: int, mask: int) -> None:
    x = np.random.default_rng(1).standard_normal((300, dim)).astype(np.float32)
    got = mpe.ops.quantize(x, precision, seed=4)
    assert not (got[:, -5] & mask).any()


@pytest.mark.pairwise
@integers
@roundings
@pytest.mark.parametrize("kind", ["scaled", "narrow", "extreme", "half_subnormal"])
def test_the_stored_range_covers_the_row(precision: str, rounding: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    fmt = FORMATS[precision]
    x = rows_of(kind, rng, 400, 20, fmt.max_abs)
    got = mpe.ops.quantize(x, precision, rounding=rounding, seed=9)
    size = 2 * np.dtype(fmt.header).itemsize
    all_codes = np.full((2, got.shape[1] - size), 0, np.uint8)
    all_codes[1] = 255
    for codes, covers in ((0, np.less_equal), (1, np.greater_equal)):
        ends = np.concatenate([np.repeat(all_codes[codes : codes + 1], 400, 0), got[:, -size:]], 1)
        values = mpe.ops.dequantize(ends, precision, 20)
        edge = x.min(axis=1) if codes == 0 else x.max(axis=1)
        assert covers(values[:, 0], edge).all()


@integers
def test_the_ends_of_a_range_never_wrap(precision: str) -> None:
    # The largest value of a row has code L or L - 1, whatever the random bits.
    rng = np.random.default_rng(8)
    x = np.tile(rng.standard_normal((1, 8)).astype(np.float32), (20_000, 1))
    values = mpe.ops.dequantize(mpe.ops.quantize(x, precision, seed=1), precision, 8)
    scale, _ = header(x[:1], precision)
    assert np.abs(values - x).max() <= 1.001 * scale[0]


@integers
@roundings
def test_constant_rows_decode_to_themselves(precision: str, rounding: str) -> None:
    rng = np.random.default_rng(2)
    value = (rng.standard_normal((200, 1)) * 10.0 ** rng.uniform(-6, 4, (200, 1))).astype(
        np.float32
    )
    value[:3] = [[0.0], [-0.0], [1.0]]
    if precision != "int8":
        value = value.astype(np.float16).astype(np.float32)
    x = np.repeat(value, 5, axis=1)
    values = mpe.ops.dequantize(mpe.ops.quantize(x, precision, rounding=rounding), precision, 5)
    assert values.tolist() == x.tolist()


@pytest.mark.parametrize("precision", [n for n in INTEGER if FORMATS[n].header is np.float16])
def test_constants_between_two_fp16_numbers_stay_between_them(precision: str) -> None:
    x = np.full((500, 3), 0.1, np.float32)
    values = mpe.ops.dequantize(mpe.ops.quantize(x, precision, seed=1), precision, 3)
    low = np.float32(np.nextafter(np.float16(0.1), np.float16(0)))
    assert (low <= values).all()
    assert (values <= np.float32(0.1) + FORMATS[precision].levels * 2.0**-24).all()


@pytest.mark.pairwise
@formats
@roundings
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "large"])
def test_a_row_that_cannot_be_stored_is_refused(precision: str, rounding: str, bad: Any) -> None:
    if bad == "large":
        limit = np.float32(FORMATS[precision].limit)
        bad = (limit.view(np.int32) + 1).view(np.float32)
    x = np.ones((5, 40), np.float32)
    for row, column in ((0, 0), (4, 39), (2, 20)):
        wrong = x.copy()
        wrong[row, column] = bad
        with pytest.raises(ValueError, match=r"\S"):
            mpe.ops.quantize(wrong, precision, rounding=rounding)


@formats
@roundings
def test_the_largest_values_are_accepted(precision: str, rounding: str) -> None:
    limit = np.float32(FORMATS[precision].max_abs)
    x = np.array([[limit, -limit, 0], [limit, limit, limit], [-limit, -limit, -limit]], np.float32)
    values = mpe.ops.dequantize(mpe.ops.quantize(x, precision, rounding=rounding), precision, 3)
    assert np.isfinite(values).all()
    assert values[1:].tolist() == x[1:].tolist()


@formats
def test_no_rows_at_all(precision: str) -> None:
    empty = np.zeros((0, 5), np.float32)
    got = mpe.ops.quantize(empty, precision)
    assert got.shape == (0, FORMATS[precision].row_bytes(5))
    assert mpe.ops.dequantize(got, precision, 5).shape == (0, 5)
