"""Random arguments to every public function: an error or a result, no crash, no changed state.

MPEMBED_FUZZ_EXAMPLES sets how many examples all tests here run together (1,500 by default).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from helpers import collection, digest, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpembed as mpe
from mpembed import ops

EXAMPLES = int(os.environ.get("MPEMBED_FUZZ_EXAMPLES", "1500")) // 5
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
ERRORS = (
    TypeError,
    ValueError,
    IndexError,
    BufferError,
    OverflowError,
    KeyError,
    RuntimeError,
    FloatingPointError,
    MemoryError,
)
DTYPES = ["i4", "i8", "f4", "f8", "u1", "u2", "u8", "f2", "?", ">i4", ">f4", "O", "S3", "c8"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["fp32", "int4", "int8", "bf16", "fp16", "sum", "none", "mean", "nearest", "stochastic"]
    ),
    st.sampled_from(["lru", "lfu", "l2", "decoupled", "raise", "drop", "skip", "cpu", "cuda", "a"]),
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Return an array of odd dtype, shape, strides, values or flags."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    dtype = draw(st.sampled_from(DTYPES[:6] if draw(st.booleans()) else DTYPES))
    value = draw(st.sampled_from([0, 1, 2, 5, -1, 39, 2**31, 2**62]))
    with np.errstate(all="ignore"):
        array: Any = np.full(shape, value).astype(dtype)
    twist = draw(st.sampled_from(["", "", "", "T", "step", "minus", "broadcast", "frozen", "odd"]))
    if twist == "T":
        array = array.T
    elif twist == "step":
        array = array[..., ::2] if array.ndim else array
    elif twist == "minus":
        array = array[::-1] if array.ndim else array
    elif twist == "broadcast":
        array = np.broadcast_to(array, (2**40, *array.shape))
    elif twist == "frozen":
        array.setflags(write=False)
    elif twist == "odd" and array.dtype.kind in "iuf":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        array = raw[1:].view(array.dtype).reshape(array.shape) if array.nbytes else array
    return array


@st.composite
def packed(draw: st.DrawFn) -> Any:
    """Return well-formed arguments now and then, so that kernels run too."""
    rows, dim = draw(st.integers(0, 5)), draw(st.integers(1, 20))
    kind = draw(st.sampled_from(["f4", "u1", "ids", "offsets"]))
    if kind == "ids":
        return np.arange(rows)
    if kind == "offsets":
        return np.zeros(draw(st.integers(1, 9)), np.int64)
    if kind == "u1":
        return np.full((rows, mpe.registry.row_bytes("int4", dim)), 255, np.uint8)
    scale = draw(st.sampled_from([0.0, 1.0, 1e-40, 1e30, np.inf, np.nan]))
    with np.errstate(all="ignore"):
        return (np.linspace(-1, 1, rows * dim).reshape(rows, dim) * scale).astype(np.float32)


anything = st.one_of(scalars, arrays(), packed(), st.lists(scalars, max_size=3))
OPS = {name: getattr(ops, name) for name in ops.__all__}
KEYWORDS = ["precision", "rounding", "seed", "step", "out", "stream", "dim", "pooling", "lr", "eps"]


def calls(function: Any, arguments: Any, keywords: Any) -> None:
    """Call and accept every documented kind of error."""
    try:
        function(*arguments, **keywords)
    except ERRORS:
        return


@FUZZ
@given(
    st.sampled_from(sorted(OPS)),
    st.lists(anything, max_size=5),
    st.dictionaries(st.sampled_from(KEYWORDS), anything, max_size=3),
)
def test_ops(name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    calls(OPS[name], arguments, keywords)


SETTINGS = ["cache", "optimizer", "device", "seed", "rounding", "bounds", "on_nonfinite"]


@FUZZ
@given(
    st.sampled_from(["TableConfig", "CacheConfig", "SGD", "Adagrad", "RowwiseAdagrad"]),
    st.lists(scalars, max_size=6),
    st.dictionaries(st.sampled_from(SETTINGS), scalars, max_size=3),
)
def test_constructors(name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    def build() -> None:
        made = getattr(mpe, name)(*arguments)
        rows = getattr(made, "num_embeddings", 1) * getattr(made, "embedding_dim", 1)
        if rows > 100_000 or getattr(made, "num_sets", 1) not in range(1, 100):
            return
        settings_: dict[str, Any] = {"optimizer": mpe.SGD(lr=0.1), **keywords}
        table = made if isinstance(made, mpe.TableConfig) else mpe.TableConfig("t", 4, 3)
        if isinstance(made, mpe.CacheConfig):
            if (made.load_factor or 0) > 100:
                return
            settings_["cache"] = made
        emb = mpe.EmbeddingBagCollection([table], **settings_)
        emb.forward(np.zeros(1, np.int64), np.array([0, 1]))

    calls(build, [], {})


METHODS = ["forward", "backward", "prefetch", "rows", "set_rows", "flush", "stats", "save"]
METHOD_KEYWORDS = ["training", "ticket", "out", "stream", "per_sample_weights", "offsets"]


@FUZZ
@given(
    st.lists(
        st.tuples(
            st.sampled_from(METHODS),
            st.lists(anything, max_size=3),
            st.dictionaries(st.sampled_from(METHOD_KEYWORDS), anything, max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_methods_change_nothing_when_they_fail(sequence: list[Any]) -> None:
    emb = collection(bounds="drop")
    train(emb, 1)
    for name, arguments, keywords in sequence:
        if name == "save":
            continue  # a path may be anything: test_load_of_changed_bytes
        before = digest(emb)
        try:
            getattr(emb, name)(*arguments, **keywords)
        except FloatingPointError:
            pass
        except ERRORS:
            assert digest(emb) == before
    train(emb, 1)


@FUZZ
@given(
    st.lists(st.integers(-5, 45), max_size=12),
    st.lists(st.integers(-2, 14), min_size=1, max_size=9),
    st.booleans(),
    st.sampled_from([np.int32, np.int64]),
    st.booleans(),
)
def test_batches(
    indices: list[int], offsets: list[int], drop: bool, index_type: type, prefetch: bool
) -> None:
    """Nearly valid batches: whatever is accepted trains, whatever is not changes nothing."""
    emb = collection(bounds="drop" if drop else "raise")
    if prefetch:
        offsets = sorted({0, *(abs(x) for x in offsets)})
        offsets = [0, *offsets, len(indices)]
    ids: Any = np.array(indices, index_type)
    ends: Any = np.array(offsets, index_type)
    before = digest(emb)
    try:
        if prefetch:
            emb.prefetch(ids, ends)
        out = emb.forward(ids, ends)
    except (ValueError, IndexError):
        assert digest(emb) == before
        return
    emb.backward(np.ones_like(out))


_SAVED: list[bytes] = []


def saved() -> bytes:
    """Return a checkpoint's bytes, made once."""
    if not _SAVED:
        emb = collection()
        train(emb)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c"
            emb.save(path)
            _SAVED.append(path.read_bytes())
    return _SAVED[0]


@FUZZ
@given(st.integers(0, 2**30), st.integers(0, 255), st.sampled_from(["set", "cut", "insert"]))
def test_load_of_changed_bytes(position: int, value: int, how: str) -> None:
    data = bytearray(saved())
    position %= len(data)
    if how == "set":
        data[position] = value
    elif how == "cut":
        del data[position:]
    else:
        data.insert(position, value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        path.write_bytes(bytes(data))
        try:
            emb = mpe.EmbeddingBagCollection.load(path)
        except (ValueError, OSError):
            return
    assert bytes(data) == saved()
    train(emb, 1)
