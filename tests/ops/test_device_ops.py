"""The stateless kernels on a device: the bytes of the CPU, and its errors."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from difficult_rows import KINDS, rows_of
from reference import FORMATS as REFERENCE

import mpembed as mpe
from mpembed import ops

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(7)
FORMATS = list(mpe.registry.FORMATS)
DIMS = [1, 3, 8, 13, 32, 33, 64, 100, 128, 129, 256, 257]


@pytest.fixture
def send(cuda: str) -> Any:
    return lambda array: mpe.to_device(array, cuda)


def same(got: Any, expected: Any) -> None:
    assert isinstance(got, mpe.Tensor)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.pairwise
@pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS_OF_NEW_ROWS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("precision", FORMATS)
def test_conversions(precision: str, dim: int, rounding: str, send: Any) -> None:
    x = (RNG.standard_normal((9, dim)) * 10).astype(np.float32)
    x[3] = x[3, 0]  # a constant row
    options: dict[str, Any] = {"rounding": rounding, "seed": 5, "step": 2**33}
    rows = ops.quantize(x, precision, **options)
    same(ops.quantize(send(x), precision, **options), rows)
    same(ops.dequantize(send(rows), precision, dim), ops.dequantize(rows, precision, dim))
    out = send(np.zeros_like(x))
    assert ops.dequantize(send(rows), precision, dim, out=out, stream=1) is out
    same(out, ops.dequantize(rows, precision, dim))


INTEGER = [name for name in FORMATS if REFERENCE[name].header is not None]


@pytest.mark.parametrize("dim", [3, 65])
@pytest.mark.parametrize("precision", FORMATS)
def test_difficult_rows(precision: str, dim: int, send: Any) -> None:
    rng = np.random.default_rng(dim)
    x = np.concatenate([rows_of(kind, rng, 3, dim, REFERENCE[precision].limit) for kind in KINDS])
    for rounding in mpe.registry.ROUNDINGS_OF_NEW_ROWS:
        options: dict[str, Any] = {"rounding": rounding, "seed": 5, "step": dim}
        rows = ops.quantize(x, precision, **options)
        same(ops.quantize(send(x), precision, **options), rows)


@pytest.mark.parametrize("precision", INTEGER)
def test_codes_that_draws_come_near(precision: str, send: Any) -> None:
    """In rows so far from zero that floats are 2^-13 of a step apart, a product alone is wrong."""
    levels = REFERENCE[precision].levels
    high = np.float32(2047 * 1.01)
    x = (high - RNG.random((400, 64)) * min(19.0, levels * 1.01)).astype(np.float32)
    x[:, 0], x[:, 1] = high - levels * 1.01, high
    grid = np.zeros((400, 64), np.float32)
    grid[:] = RNG.integers(0, 2 * levels, grid.shape) / 2
    grid[:, 0], grid[:, 1] = 0, levels  # a step is 1: every other value is a tie
    for values in (x, -x, grid):
        for rounding in mpe.registry.ROUNDINGS_OF_NEW_ROWS:
            options: dict[str, Any] = {"rounding": rounding, "seed": 5, "step": 3}
            rows = ops.quantize(values, precision, **options)
            same(ops.quantize(send(values), precision, **options), rows)


@pytest.mark.parametrize("precision", INTEGER)
def test_difficult_rows_in_pairs(precision: str, send: Any) -> None:
    """Two writes of a pair: the first stores a negative scale."""
    rng, dim = np.random.default_rng(1), 9
    limit = REFERENCE[precision].limit / 8
    x = np.concatenate([rows_of(kind, rng, 2, dim, limit) for kind in KINDS])
    weights, ids = ops.quantize(x, precision), np.arange(len(x))
    there, kept = send(weights), REFERENCE[precision].header
    signs: set[float] = set()
    assert kept is not None
    options: dict[str, Any] = {"precision": precision, "dim": dim, "rounding": "paired", "seed": 3}
    for step in range(3):
        grad = (x * rng.uniform(-1, 1, x.shape)).astype(np.float32)
        ops.sgd_(weights, ids, grad, lr=1.0, step=step, **options)
        ops.sgd_(there, send(ids), send(grad), lr=1.0, step=step, **options)
        same(there, weights)
        headers = np.ascontiguousarray(weights[:, -2 * np.dtype(kept).itemsize :]).view(kept)
        signs.update(np.sign(headers[:, 0]))
    assert {-1, 1} <= signs


class _Shifted:
    """So many rows of a tensor, from `start` bytes on."""

    def __init__(self, tensor: mpe.Tensor, start: int, rows: int) -> None:
        self.tensor, self.start, self.rows = tensor, start, rows

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.tensor.__dlpack__(**options)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        place = pointer(capsule, b"dltensor_versioned") + 32  # the DLTensor in it
        ctypes.c_uint64.from_address(place + 40).value += self.start  # byte_offset
        shape = ctypes.c_uint64.from_address(place + 24).value
        ctypes.c_int64.from_address(shape).value = self.rows
        return capsule


@pytest.mark.pairwise
@pytest.mark.parametrize("start", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [8, 12, 13, 64])
@pytest.mark.parametrize("precision", FORMATS)
def test_rows_need_no_alignment(precision: str, dim: int, start: int, send: Any) -> None:
    x = (RNG.standard_normal((9, dim)) * 10).astype(np.float32)
    rows = ops.quantize(x, precision, seed=5, step=1)
    indices, offsets = np.arange(9) % 5, np.array([0, 4, 4, 9])
    room = send(np.zeros((17, rows.shape[1]), np.uint8))
    there = _Shifted(room, start, 9)
    assert ops.quantize(send(x), precision, seed=5, step=1, out=there) is there
    np.testing.assert_array_equal(room.numpy().ravel()[start:][: rows.size], rows.ravel())
    same(ops.dequantize(there, precision, dim), ops.dequantize(rows, precision, dim))
    pooled = ops.embedding_bag(rows, precision, dim, indices, offsets)
    same(ops.embedding_bag(there, precision, dim, send(indices), send(offsets)), pooled)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 31])
def test_packing(bits: int, dim: int, send: Any) -> None:
    pack, unpack = getattr(ops, f"pack_int{bits}"), getattr(ops, f"unpack_int{bits}")
    codes = RNG.integers(0, 1 << bits, (300, dim)).astype(np.uint8)
    same(pack(send(codes)), pack(codes))
    same(unpack(send(pack(codes)), dim), codes)
    codes[7, 0] = codes[9, 0] = 200
    for array in (codes, send(codes)):
        with pytest.raises(ValueError, match=f"below {1 << bits}, got 200 at {7 * dim}"):
            pack(array)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (7, 300)])
def test_stochastic_round(precision: str, shape: tuple[int, ...], send: Any) -> None:
    x = np.asarray(RNG.standard_normal(shape), np.float32)
    expected = ops.stochastic_round(x, precision, seed=1, step=3)
    same(ops.stochastic_round(send(x), precision, seed=1, step=3), expected)


@pytest.mark.parametrize("dtype", ["i4", "i8"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_unique_rows(count: int, dtype: str, send: Any) -> None:
    indices = RNG.integers(0, 200, count).astype(dtype)
    for got, expected in zip(ops.unique_rows(send(indices)), ops.unique_rows(indices), strict=True):
        same(got, expected)
    if count:
        indices[count // 2] = -4
        for array in (indices, send(indices)):
            with pytest.raises(IndexError, match=f"must not be negative, got -4 at {count // 2}"):
                ops.unique_rows(array)


def test_cache_lookup(send: Any) -> None:
    cache = mpe.CacheConfig(num_sets=4, ways=8)
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("a", 300, 4)], cache=cache, optimizer=mpe.SGD(0.1)
    )
    emb.forward(np.arange(0, 300, 9), np.array([0, 34]))
    tags, rows = emb.state_arrays()["cache.4.sgd.tags"], np.arange(300, dtype=np.int32)
    same(ops.cache_lookup(send(tags), send(rows)), ops.cache_lookup(tags, rows))


@pytest.mark.pairwise
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("pooling", mpe.registry.POOLINGS)
@pytest.mark.parametrize("precision", FORMATS)
def test_embedding_bag(precision: str, pooling: str, weighted: bool, send: Any) -> None:
    rows = ops.quantize(RNG.standard_normal((50, 19)).astype(np.float32), precision)
    indices, offsets = RNG.integers(0, 50, 40), np.array([0, 0, 11, 12, 40], np.int32)
    weights = RNG.standard_normal(40).astype(np.float32) if weighted else None
    arrays = [indices, offsets, weights]
    there = [None if a is None else send(a) for a in arrays]

    def pool(table: Any, indices: Any, offsets: Any, weights: Any) -> Any:
        return ops.embedding_bag(
            table, precision, 19, indices, offsets, pooling=pooling, per_sample_weights=weights
        )

    same(pool(send(rows), *there), pool(rows, *arrays))
    for table, some, other in ((rows, arrays, np.asarray), (send(rows), there, send)):
        with pytest.raises(IndexError, match=r"'rows'.*index 50 at position 3 .*; 2 such"):
            pool(table, other(np.where(np.isin(np.arange(40), (3, 7)), 50, indices)), *some[1:])
        with pytest.raises(ValueError, match="offsets must end at the number of indices, 40"):
            pool(table, some[0], other(offsets - (offsets == 40)), some[2])


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("precision", FORMATS)
def test_sparse_updates(precision: str, kind: str, send: Any) -> None:
    update = getattr(ops, f"{kind}_")
    x = RNG.standard_normal((20, 6)).astype(np.float32)
    arrays = [ops.quantize(x, precision), RNG.integers(0, 20, 90)]
    arrays.append(RNG.standard_normal((90, 6)).astype(np.float32))
    arrays[2][4, 1] = np.nan
    if kind != "sgd":
        arrays.append(np.zeros((20, 6) if kind == "adagrad" else 20, np.float32))
    there = [send(a) for a in arrays]
    options = {"lr": 0.1, "precision": precision, "dim": 6, "seed": 3, "step": 9}
    assert update(*arrays, **options) == update(*there, **options) == 1
    for got, expected in zip(there, arrays, strict=True):
        same(got, expected)
    bad = np.where(arrays[1] == arrays[1][0], 20, arrays[1])
    with pytest.raises(IndexError, match=r"index 20 at position 0 of rows"):
        update(there[0], send(bad), *there[2:], **options)
    same(there[0], arrays[0])


def test_values_that_cannot_be_stored(send: Any) -> None:
    x = np.ones((5, 3), np.float32)
    x[2, 1], x[4, 0] = 1e9, np.inf
    out = send(np.full((5, 6), 7, np.uint8))
    with pytest.raises(ValueError, match=r"x: row 2 .*exceeds the range of fp16; 2 such rows"):
        ops.quantize(send(x), "fp16", out=out)
    assert (out.numpy() == 7).all()
