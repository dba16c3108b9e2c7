"""PyTorch's quantized kernels read our rows."""

from __future__ import annotations

import numpy as np
import pytest

from mpembed import ops

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [2, 8, 16, 34, 64, 128, 250])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_torch_reads_our_bytes(precision: str, dim: int, weighted: bool) -> None:
    x = RNG.standard_normal((50, dim)).astype(np.float32)
    rows = ops.quantize(x, precision, seed=dim)
    indices = RNG.integers(0, 50, 200)
    offsets = np.sort(np.concatenate([[0, 200], RNG.integers(0, 201, 20)]))
    weights = RNG.standard_normal(200).astype(np.float32) if weighted else None
    ours = ops.embedding_bag(rows, precision, dim, indices, offsets, per_sample_weights=weights)
    # The functions behind embedding_bag_byte and embedding_bag_4bit, for rows held by the caller.
    name = {"int8": "embedding_bag_byte", "int4": "embedding_bag_4bit"}[precision]
    theirs = getattr(torch.ops.quantized, f"{name}_rowwise_offsets")(
        torch.from_numpy(rows),
        torch.from_numpy(indices),
        torch.from_numpy(offsets),
        False,
        0,
        False,
        torch.from_numpy(weights) if weights is not None else None,
        None,
        True,
    )
    # Both sum at most 200 terms below 20 in FP32; they round in other places, each by 2^-24.
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=200 * 200 * 20 * 2**-24 / 10)
