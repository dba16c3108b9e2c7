"""What several test files need: a small collection, a digest of all state, odd arguments."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import on_device
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import mpembed as mpe
from mpembed._bindings.contract import PIN_MASK

Array = npt.NDArray[Any]


def collection(**options: Any) -> Any:
    """Return two tables of 40 and 9 rows with a small cache, on the device in use."""
    settings: dict[str, Any] = {
        "cache": mpe.CacheConfig(num_sets=1, policy="lfu", ways=8),
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        **options,
    }
    tables = [
        mpe.TableConfig("a", 40, 6, precision="int4"),
        mpe.TableConfig("b", 9, 6, precision="int8", pooling="mean"),
    ]
    if "device" in settings:
        return mpe.EmbeddingBagCollection(tables, **settings)
    return on_device.make(tables, **settings)


def batch() -> tuple[Array, Array]:
    """Return indices and offsets of three bags a table, one of them empty."""
    indices = np.array([1, 2, 39, 2, 7, 8, 0, 8], np.int64)
    return indices, np.array([0, 2, 2, 5, 6, 7, 8], np.int64)


def train(emb: mpe.EmbeddingBagCollection, steps: int = 3) -> None:
    """Run a few steps, so that there is state to lose."""
    indices, offsets = batch()
    for _ in range(steps):
        out = emb.forward(indices, offsets)
        emb.backward(np.ones_like(out))


def set_lr(emb: mpe.EmbeddingBagCollection, lr: float) -> None:
    """Set the rate of the optimizer that the tables share."""
    assert emb.optimizer is not None
    emb.optimizer.lr = lr


def digest(emb: mpe.EmbeddingBagCollection) -> str:
    """Return a hash of every array of the state."""
    hashed = hashlib.sha256()
    for name, array in sorted(emb.state_arrays().items()):
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def pinned(emb: Any) -> int:
    """Return the number of pinned slots of all caches."""
    tags = [array for name, array in emb.state_arrays().items() if name.endswith(".tags")]
    assert tags, "there is no cache"
    return int(sum(np.count_nonzero(array & np.uint64(PIN_MASK)) for array in tags))


# ---- arguments for fuzzing ----------------------------------------------------------------------

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
