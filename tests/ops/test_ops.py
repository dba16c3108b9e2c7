"""The stateless kernels on NumPy, PyTorch and JAX arrays."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from reference import FORMATS
from reference.bags import parse, pool

import mpembed as mpe
from mpembed import ops

jnp = pytest.importorskip("jax.numpy")
torch = pytest.importorskip("torch")

RNG = np.random.default_rng(5)
X = RNG.standard_normal((7, 13)).astype(np.float32)
FRAMEWORKS = {"numpy": np.asarray, "torch": torch.from_numpy, "jax": jnp.asarray}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_round_trip_from_any_framework(precision: str, framework: str) -> None:
    make: Any = FRAMEWORKS[framework]
    rows = ops.quantize(make(X), precision, seed=3, step=4)
    np.testing.assert_array_equal(rows, ops.quantize(X, precision, seed=3, step=4))
    values = ops.dequantize(make(rows), precision, 13)
    span = X.max(axis=1, keepdims=True) - X.min(axis=1, keepdims=True)
    bound = {"fp32": 0.0, "fp16": 2e-3, "bf16": 2e-2}.get(precision)
    if bound is None:
        bound = span / (0.97 * FORMATS[precision].levels)  # the scale is rounded up
    assert (np.abs(values - X) <= bound).all()


def test_out_is_written_in_place() -> None:
    rows = np.zeros((7, mpe.registry.row_bytes("int4", 13)), np.uint8)
    assert ops.quantize(X, "int4", out=rows) is rows
    np.testing.assert_array_equal(rows, ops.quantize(X, "int4"))
    values = torch.zeros(7, 13)
    assert ops.dequantize(rows, "int4", 13, out=values) is values
    np.testing.assert_array_equal(values.numpy(), ops.dequantize(rows, "int4", 13))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 31])
def test_packing(bits: int, dim: int) -> None:
    pack, unpack = (
        (ops.pack_int4, ops.unpack_int4) if bits == 4 else (ops.pack_int2, ops.unpack_int2)
    )
    codes = RNG.integers(0, 1 << bits, (5, dim)).astype(np.uint8)
    packed = pack(codes)
    assert packed.shape == (5, -(-dim * bits // 8))
    for column in range(dim):  # the layout, said again
        byte = packed[:, column * bits // 8]
        np.testing.assert_array_equal(
            byte >> (column * bits % 8) & (1 << bits) - 1, codes[:, column]
        )
    np.testing.assert_array_equal(unpack(packed, dim), codes)
    unused = packed.shape[1] * 8 - dim * bits
    assert not (packed[:, -1] >> (8 - unused)).any() or unused == 0
    with pytest.raises(ValueError, match="codes must be below"):
        pack(codes + np.uint8(1 << bits))


def test_stochastic_round() -> None:
    half = ops.stochastic_round(X, "fp16", seed=1)
    assert half.dtype == np.float16
    assert half.shape == X.shape
    below, above = np.nextafter(half, np.float16(-np.inf)), np.nextafter(half, np.float16(np.inf))
    assert ((below < X) & (above > X)).all()
    bits = ops.stochastic_round(X, "bf16", seed=1)
    target = torch.zeros(7, 13, dtype=torch.bfloat16)
    assert ops.stochastic_round(X, "bf16", seed=1, out=target) is target
    np.testing.assert_array_equal(target.view(torch.uint16).numpy(), bits)
    assert (np.abs(target.float().numpy() - X) <= np.abs(X) * 2**-7).all()
    with pytest.raises(ValueError, match="element 3 is not finite"):
        ops.stochastic_round(np.array([0, 1, 2, np.inf], np.float32), "fp16")


def test_unique_rows() -> None:
    indices = RNG.integers(0, 50, 300)
    rows, starts, positions = ops.unique_rows(indices)
    np.testing.assert_array_equal(rows, np.unique(indices))
    for u, row in enumerate(rows):
        np.testing.assert_array_equal(
            positions[starts[u] : starts[u + 1]], np.flatnonzero(indices == row)
        )
    huge = np.array([2**62, 5, 2**62], np.int64)
    assert ops.unique_rows(huge)[0].tolist() == [5, 2**62]
    assert ops.unique_rows(huge)[2].tolist() == [1, 0, 2]
    assert ops.unique_rows(np.empty(0, np.int32))[0].shape == (0,)
    with pytest.raises(IndexError, match="got -1 at 1"):
        ops.unique_rows(np.array([3, -1]))


def test_cache_lookup() -> None:
    table = mpe.TableConfig("t", 500, 4)
    emb = mpe.EmbeddingBagCollection(
        [table], optimizer=mpe.SGD(lr=0.1), cache=mpe.CacheConfig(num_sets=3, ways=8)
    )
    emb.forward(np.arange(60), np.arange(61))
    tags = emb.state_arrays()["cache.4.sgd.tags"]
    slots = ops.cache_lookup(tags, np.arange(500))
    ids = tags.reshape(-1) & np.uint64(2**48 - 1)
    assert (slots >= 0).sum() == (ids < 500).sum() > 10
    np.testing.assert_array_equal(ids[slots[slots >= 0]], np.flatnonzero(slots >= 0))
    for bad in (np.array([-1]), np.array([2**48 - 1])):
        with pytest.raises(IndexError):
            ops.cache_lookup(tags, bad)


@pytest.mark.parametrize("pooling", mpe.registry.POOLINGS)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_embedding_bag(precision: str, pooling: str) -> None:
    rows = ops.quantize(X, precision)
    values = ops.dequantize(rows, precision, 13)
    indices, offsets = np.array([0, 6, 6, 2, 1]), np.array([0, 3, 3, 5])
    weights = np.array([0.5, 2, -1, 1, 3], np.float32)
    out = ops.embedding_bag(
        rows, precision, 13, indices, offsets, pooling=pooling, per_sample_weights=weights
    )
    scaled = values[indices].astype(np.float64) * weights[:, None]
    if pooling == "none":
        expected = scaled
    else:
        bags = [scaled[a:b].sum(axis=0) for a, b in pairwise(offsets)]
        count = np.maximum(np.diff(offsets), 1)[:, None] if pooling == "mean" else 1
        expected = np.stack(bags) / count
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(IndexError, match="index 7 at position 0"):
        ops.embedding_bag(rows, precision, 13, np.array([7]), np.array([0, 1]))


@pytest.mark.parametrize("pooling", mpe.registry.POOLINGS)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_embedding_bag_is_the_reference_byte_for_byte(precision: str, pooling: str) -> None:
    indices = RNG.integers(0, 7, 90)
    offsets = np.array([0, 0, 70, 71, 85, 85, 90])  # empty bags, and a long one
    weights = RNG.standard_normal(90).astype(np.float32)
    rows = ops.quantize(X, precision, seed=9)
    values = ops.dequantize(rows, precision, 13)[indices]
    part = parse([7], indices, offsets).tables[0]
    table = (rows, precision, 13, indices, offsets)
    for w in (None, weights):
        out = ops.embedding_bag(*table, pooling=pooling, per_sample_weights=w)
        expected = pool(part, pooling, values, np.ones(90, np.float32) if w is None else w)
        assert out.tobytes() == expected.tobytes()


CODES = RNG.integers(0, 4, (7, 13)).astype(np.uint8)
ROWS, IDS = ops.quantize(X, "int4"), RNG.integers(0, 7, 20)
TAGS = RNG.permutation(64).astype(np.uint64).reshape(8, 8)
EVERY: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "quantize": (lambda x, **k: ops.quantize(x, "int2", seed=1, **k), (X,)),
    "dequantize": (lambda x, **k: ops.dequantize(x, "int4", 13, **k), (ROWS,)),
    "pack_int4": (ops.pack_int4, (CODES,)),
    "pack_int2": (ops.pack_int2, (CODES,)),
    "unpack_int4": (lambda x, **k: ops.unpack_int4(x, 22, **k), (ROWS,)),
    "unpack_int2": (lambda x, **k: ops.unpack_int2(x, 44, **k), (ROWS,)),
    "stochastic_round": (lambda x, **k: ops.stochastic_round(x, "fp16", **k), (X,)),
    "cache_lookup": (lambda ids, **k: ops.cache_lookup(TAGS, ids, **k), (IDS,)),
    "embedding_bag": (
        lambda x, i, o, **k: ops.embedding_bag(x, "int4", 13, i, o, pooling="mean", **k),
        (ROWS, IDS, np.array([0, 4, 20])),
    ),
}


def test_every_function_is_here() -> None:
    # test_sparse_ops.py has these.
    in_place = {f"{kind}_" for kind in mpe.registry.OPTIMIZERS if kind != "sgd_momentum"}
    assert set(ops.__all__) == set(EVERY) | in_place | {"unique_rows"}


@pytest.mark.parametrize("name", EVERY)
def test_any_framework_in_and_out(name: str) -> None:
    function, arrays = EVERY[name]
    expected = function(*arrays)
    for make in FRAMEWORKS.values():
        np.testing.assert_array_equal(function(*map(make, arrays)), expected)
    for target in (np.zeros_like(expected), torch.from_numpy(np.zeros_like(expected))):
        assert function(*arrays, out=target) is target
        np.testing.assert_array_equal(np.asarray(target), expected)
    with pytest.raises(BufferError, match="^out: is written to"):  # JAX arrays do not change
        function(*arrays, out=jnp.zeros(expected.shape, expected.dtype))
    shape = (*expected.shape[:-1], expected.shape[-1] + 1)
    with pytest.raises(ValueError, match="^out: expected shape"):
        function(*arrays, out=np.zeros(shape, expected.dtype))
    with pytest.raises(TypeError, match="^out: expected dtype"):
        function(*arrays, out=np.zeros(expected.shape, np.complex64))
    with pytest.raises(ValueError, match="stream must be None"):
        function(*arrays, stream=1)


def test_nothing_is_copied() -> None:
    x = np.ones((4096, 512), np.float32)
    rows = np.zeros((4096, mpe.registry.row_bytes("int8", 512)), np.uint8)
    codes, half = np.ones((4096, 512), np.uint8), np.zeros((4096, 512), np.float16)
    packed = ops.pack_int4(codes)
    tracemalloc.start()
    try:
        ops.quantize(x, "int8", out=rows)
        ops.dequantize(rows, "int8", 512, out=x)
        ops.pack_int4(codes, out=packed)
        ops.unpack_int4(packed, 512, out=codes)
        ops.stochastic_round(x, "fp16", out=half)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_philox_of_quantize_depends_on_seed_and_step_only() -> None:
    first = ops.quantize(X, "int4", seed=1, step=2)
    np.testing.assert_array_equal(first[2:5], ops.quantize(X, "int4", seed=1, step=2)[2:5])
    assert (first != ops.quantize(X, "int4", seed=2, step=2)).any()
    assert (first != ops.quantize(X, "int4", seed=1, step=3)).any()


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "precision": (lambda: ops.quantize(X, "int3"), ValueError, "precision must be one of 'fp32'"),
    "rounding": (lambda: ops.quantize(X, "int4", rounding="up"), ValueError, "rounding"),
    "paired": (
        lambda: ops.quantize(X, "int4", rounding="paired"),
        ValueError,
        "use rounding='stochastic'",
    ),
    "seed": (lambda: ops.quantize(X, "int4", seed=-1), ValueError, "seed"),
    "step": (lambda: ops.quantize(X, "int4", step=2**40), ValueError, "step"),
    "seed type": (
        lambda: ops.quantize(X, "int4", seed=1.5),  # type: ignore[arg-type]
        TypeError,
        "seed",
    ),
    "dtype": (lambda: ops.quantize(X.astype("f8"), "int4"), TypeError, "x"),
    "1-D": (lambda: ops.quantize(X[0], "int4"), ValueError, "x"),
    "no columns": (lambda: ops.quantize(X[:, :0], "int4"), ValueError, "columns of x"),
    "strided": (lambda: ops.quantize(X[:, ::2], "int4"), ValueError, "x"),
    "nan": (lambda: ops.quantize(X * np.nan, "int4"), ValueError, "row 0 is not finite"),
    "out shape": (
        lambda: ops.quantize(X, "int4", out=np.zeros((7, 12), "u1")),
        ValueError,
        "out",
    ),
    "row bytes": (
        lambda: ops.dequantize(np.zeros((7, 12), "u1"), "int4", 13),
        ValueError,
        "11 bytes a row",
    ),
    "dim": (lambda: ops.dequantize(np.zeros((7, 4), "u1"), "int4", 0), ValueError, "dim"),
    "stream": (lambda: ops.quantize(X, "int4", stream=0), ValueError, "stream"),
    "pooling": (
        lambda: ops.embedding_bag(X.view("u1"), "fp32", 13, X[0], X[0], pooling="max"),
        ValueError,
        "pooling",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_errors(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_embedding_bag_takes_no_dict() -> None:
    rows = np.zeros((3, 16), np.uint8)
    with pytest.raises(TypeError, match=r"^indices: expected an array.*got dict"):
        ops.embedding_bag(rows, "int8", 8, {}, None)
    with pytest.raises(TypeError, match=r"^offsets are missing"):
        ops.embedding_bag(rows, "int8", 8, np.arange(3), None)


@pytest.mark.parametrize("spare", [0, 3])
def test_unique_rows_into_given_arrays(spare: int) -> None:
    indices = np.array([5, 3, 5, 0, 3, 5], np.int32)
    out = tuple(np.full(6 + n + spare, -7, t) for n, t in ((0, "i8"), (1, "i8"), (0, "i4")))
    results = ops.unique_rows(indices, out=out)
    for result, expected, array in zip(results, ops.unique_rows(indices), out, strict=True):
        np.testing.assert_array_equal(result, expected)
        assert result.dtype == expected.dtype
        assert np.shares_memory(result, array)
    for place, dtype in ((0, "i4"), (1, "u8"), (2, "i8")):
        wrong = list(out)
        wrong[place] = out[place].astype(dtype)
        with pytest.raises(TypeError, match="of out"):
            ops.unique_rows(indices, out=tuple(wrong))
        wrong[place] = out[place][: 5 + (place == 1)]
        with pytest.raises(ValueError, match=rf"at least {6 + (place == 1)} elements"):
            ops.unique_rows(indices, out=tuple(wrong))
    for odd in (out[0], out[:2], list(out)):
        with pytest.raises(TypeError, match="tuple of three arrays"):
            ops.unique_rows(indices, out=odd)
    for array in ops.unique_rows(indices[:0], out=out):
        assert len(array) <= 1


@pytest.mark.torch
def test_unique_rows_into_tensors() -> None:
    torch = pytest.importorskip("torch")
    out = (
        torch.empty(3, dtype=torch.int64),
        torch.empty(4, dtype=torch.int64),
        torch.empty(3, dtype=torch.int32),
    )
    rows, starts, positions = ops.unique_rows(torch.tensor([4, 1, 4]), out=out)
    assert rows.tolist() == [1, 4]
    assert starts.tolist() == [0, 1, 3]
    assert positions.tolist() == [1, 0, 2]
    assert rows.data_ptr() == out[0].data_ptr()
