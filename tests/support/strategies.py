"""Arguments for fuzzing, drawn by Hypothesis: odd objects, arrays, indices and offsets."""

from __future__ import annotations

import os

import numpy as np
from helpers import Array
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# What a fuzzed call may raise; FloatingPointError is for a backward, after its other rows.
ERRORS: tuple[type[Exception], ...] = (TypeError, ValueError, IndexError, BufferError, KeyError)
ERRORS += (OverflowError, RuntimeError, MemoryError, OSError)


def fuzz(part: float) -> settings:
    """Return settings for a part of MPEMBED_FUZZ_EXAMPLES (1,500), shared by all fuzz tests."""
    count = int(int(os.environ.get("MPEMBED_FUZZ_EXAMPLES", "1500")) * part)
    checks = list(HealthCheck)
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=3),
    st.builds(list),
    st.builds(dict),
    st.builds(object),
    st.sampled_from(["fp32", "int4", "mean", "none", "nearest", "lfu", "l2", "drop", "skip"]),
)
_DTYPES = ["i4", "i8", "f4", "f8", "u1", "u2", "u8", "f2", "?", ">i4", ">f4", "O", "S3", "c8"]
_DTYPES += ["M8[s]", "f4,i2"]
_SPECIAL = [0.0, -0.0, 1.0, 1e-45, 1e-38, 65504.0, 65520.0, 7e4, 3e38, 2.0**126]
_SPECIAL += [np.inf, -np.inf, np.nan]


@st.composite
def odd_arrays(draw: st.DrawFn) -> Array:
    """Return an array of any type, of a small shape."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    value = draw(st.sampled_from([0, 1, 2, 5, -1, 39, 2**31 - 1, 2**31, 2**62]))
    dtype = draw(st.sampled_from(_DTYPES))
    with np.errstate(all="ignore"):
        return np.full(shape, value).astype(dtype) if "," not in dtype else np.zeros(shape, dtype)


@st.composite
def floats(draw: st.DrawFn, shape: tuple[int, ...]) -> Array:
    """Return float32 values of some magnitude, now and then with special ones among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e4, 1e-40, 1e37]))
    values: Array = (rng.standard_normal(shape) * scale).astype(np.float32)
    if values.size and draw(st.integers(0, 3)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            position = draw(st.integers(0, values.size - 1))
            values.reshape(-1)[position] = draw(st.sampled_from(_SPECIAL))
    return values


@st.composite
def row_numbers(draw: st.DrawFn, count: int, rows: int) -> Array:
    """Return indices of a table, one of them out of range now and then."""
    values = draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count))
    ids: Array = np.array(values, draw(st.sampled_from(["i4", "i8"])))
    if count and draw(st.integers(0, 7)) == 0:
        wrong = draw(st.sampled_from([-1, rows, 2**31 - 1, -(2**31)]))
        ids[draw(st.integers(0, count - 1))] = wrong
    return ids


@st.composite
def bag_offsets(draw: st.DrawFn, bags: int, count: int) -> Array:
    """Return offsets of bags that hold `count` indices, one of them wrong now and then."""
    inner = draw(st.lists(st.integers(0, count), min_size=max(0, bags - 1), max_size=bags - 1))
    ends: Array = np.array([0, *sorted(inner), count], draw(st.sampled_from(["i4", "i8"])))
    if draw(st.integers(0, 7)) == 0:
        wrong = draw(st.sampled_from([-1, count + 1, 2**31 - 1, -(2**31)]))
        ends[draw(st.integers(0, bags))] = wrong
    return ends


@st.composite
def twisted(draw: st.DrawFn, array: Array) -> Array:
    """Return an array in another layout, cut, frozen, misaligned or endlessly broadcast."""
    twist = draw(st.sampled_from(["T", "step", "minus", "broad", "frozen", "odd", "cut", "flat"]))
    if twist == "broad":
        return np.broadcast_to(array, (draw(st.sampled_from([2, 2**40])), *array.shape))
    if twist == "frozen":
        array = array.copy()
        array.setflags(write=False)
    elif twist == "odd" and array.nbytes and not array.dtype.hasobject:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        array = raw[1:].view(array.dtype).reshape(array.shape)
    elif twist == "flat" and array.size < 2**20:
        array = array.reshape(-1)
    elif array.ndim:
        array = {"T": array.T, "step": array[..., ::2], "minus": array[::-1]}.get(twist, array[:-1])
    return array
