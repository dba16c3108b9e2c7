"""PyTorch's quantized kernels read our rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import decode
from reference.formats import unpack

from mpembed import ops

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

KERNELS = {"int8": "embedding_bag_byte", "int4": "embedding_bag_4bit"}
DIMS = {"int8": [1, 2, 3, 7, 8, 16, 31, 64, 129, 250], "int4": [2, 4, 6, 14, 16, 34, 64, 128, 250]}


def by_torch(precision: str, rows: Array, indices: Array, offsets: Array, weights: Any) -> Array:
    """Sum bags with PyTorch: the form of its kernels that takes the rows' bytes as they are."""
    kernel = getattr(torch.ops.quantized, f"{KERNELS[precision]}_rowwise_offsets")
    out = kernel(
        torch.from_numpy(rows),
        torch.from_numpy(indices),
        torch.from_numpy(offsets),
        per_sample_weights=None if weights is None else torch.from_numpy(weights),
        include_last_offset=True,
    )
    return np.asarray(out.numpy())


def error_bound(
    precision: str, rows: Array, dim: int, indices: Array, offsets: Array, weights: Any
) -> Array:
    """How far two FP32 sums of the same terms may lie apart.

    A term is weight * (scale * code + bias). Either kernel needs at most four roundings for a term
    and one for each addition, so that each errs by at most (n + 4) 2^-24 of the sum of magnitudes.
    """
    size = -(-dim * int(precision[3:]) // 8)
    head = np.ascontiguousarray(rows[:, size:]).view("<f4" if precision == "int8" else "<f2")
    codes = rows[:, :size] if precision == "int8" else unpack(rows[:, :size], 4, dim)
    scale, bias = head[:, :1].astype(np.float64), head[:, 1:].astype(np.float64)
    terms = (np.abs(scale) * codes + np.abs(bias))[indices]
    terms *= 1 if weights is None else np.abs(weights, dtype=np.float64)[:, None]
    sums = np.concatenate([np.zeros((1, dim)), np.cumsum(terms, axis=0)])
    lengths = np.diff(offsets)[:, None]
    return np.asarray(2 * (lengths + 4) * 2.0**-24 * (sums[offsets[1:]] - sums[offsets[:-1]]))


def agree(precision: str, x: Array, indices: Array, offsets: Array, weights: Any = None) -> None:
    dim = x.shape[1]
    rows = ops.quantize(x, precision, seed=dim)
    ours = ops.embedding_bag(rows, precision, dim, indices, offsets, per_sample_weights=weights)
    theirs = by_torch(precision, rows, indices, offsets, weights)
    assert theirs.shape == ours.shape
    bound = error_bound(precision, rows, dim, indices, offsets, weights)
    assert (np.abs(theirs.astype(np.float64) - ours) <= bound).all()


@pytest.mark.pairwise
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index_type", [np.int32, np.int64])
@pytest.mark.parametrize(("precision", "dim"), [(p, d) for p, dims in DIMS.items() for d in dims])
def test_torch_reads_our_bytes(precision: str, dim: int, index_type: type, weighted: bool) -> None:
    rng = np.random.default_rng(dim)
    x = (rng.standard_normal((50, dim)) * 10.0 ** rng.integers(-3, 4, (50, 1))).astype(np.float32)
    x[7] = 2.5  # a constant row: scale 0
    indices: Array = rng.integers(0, 50, 200).astype(index_type)
    offsets: Array = np.sort(np.concatenate([[0, 200], rng.integers(0, 201, 20)]))
    offsets = offsets.astype(index_type)
    weights = rng.standard_normal(200).astype(np.float32) if weighted else None
    agree(precision, x, indices, offsets, weights)


@settings(max_examples=60)
@given(st.sampled_from(sorted(KERNELS)), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_any_dimension_and_bags(precision: str, half: int, seed: int) -> None:
    """PyTorch's 4 bit kernel knows even dimensions only."""
    rng = np.random.default_rng(seed)
    dim = 2 * half if precision == "int4" else half
    count = int(rng.integers(1, 9))
    x = rng.uniform(-100, 100, (count, dim)).astype(np.float32)
    indices = rng.integers(0, count, int(rng.integers(1, 40)))
    inner = np.sort(rng.integers(0, len(indices) + 1, 5))
    agree(precision, x, indices, np.concatenate([[0], inner, [len(indices)]]))


@pytest.mark.parametrize("precision", sorted(KERNELS))
def test_single_rows_are_what_the_reference_decodes(precision: str) -> None:
    """Bags of one row: PyTorch decodes each row to our value, within two roundings."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((40, 32)).astype(np.float32)
    rows = ops.quantize(x, precision)
    theirs = by_torch(precision, rows, np.arange(40), np.arange(41), None)
    ours = decode(rows, precision, 32)
    np.testing.assert_allclose(theirs, ours, rtol=2**-22, atol=2**-22 * np.abs(x).max())


def test_torch_unpacks_int8_rows() -> None:
    """`embedding_bag_byte_unpack` decodes whole rows."""
    x = np.random.default_rng(6).standard_normal((30, 21)).astype(np.float32)
    rows = ops.quantize(x, "int8", rounding="nearest")
    theirs = torch.ops.quantized.embedding_bag_byte_unpack(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(theirs, decode(rows, "int8", 21), rtol=2**-22, atol=2**-20)
    packed = torch.ops.quantized.embedding_bag_byte_prepack(torch.from_numpy(x)).numpy()
    ours = ops.dequantize(packed, "int8", 21)  # and we read what PyTorch packs
    step = (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / 255
    assert (np.abs(ours - x) <= step * (0.5 + 1e-3)).all()


def test_we_read_what_torch_packs_in_4_bits() -> None:
    x = np.random.default_rng(7).standard_normal((30, 22)).astype(np.float32)
    packed = torch.ops.quantized.embedding_bag_4bit_prepack(torch.from_numpy(x)).numpy()
    theirs = torch.ops.quantized.embedding_bag_4bit_unpack(torch.from_numpy(packed)).numpy()
    ours = ops.dequantize(packed, "int4", 22)
    np.testing.assert_allclose(ours, theirs, rtol=2**-22, atol=2**-20)
    step = (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / 15
    assert (np.abs(ours - x) <= step * 0.6).all()
