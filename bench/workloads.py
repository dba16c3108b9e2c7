"""Forward and fused backward of one table, by mpembed and its peers, on the same indices."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

import mpembed as mpe

ROWS, DIM, BAGS, POOL = 1_000_000, 64, 2048, 20
BATCHES = 8
LOOKUPS = BAGS * POOL
OFFSETS = np.arange(0, LOOKUPS + 1, POOL)
OPTIMIZERS = {"sgd": mpe.SGD, "adagrad": mpe.Adagrad, "rowwise_adagrad": mpe.RowwiseAdagrad}

Step = Callable[[int], Any]  # runs batch i


def has_fbgemm() -> bool:
    """Whether FBGEMM's CPU package can be imported."""
    return importlib.util.find_spec("fbgemm_gpu") is not None


def batches(distribution: str) -> list[np.ndarray[Any, Any]]:
    """Return index batches: "uniform", or "zipf" with exponent 1.05 over shuffled rows."""
    rng = np.random.default_rng(0)
    if distribution == "uniform":
        return [rng.integers(0, ROWS, LOOKUPS) for _ in range(BATCHES)]
    weights = np.arange(1, ROWS + 1, dtype=np.float64) ** -1.05
    cumulative = np.cumsum(weights) / weights.sum()
    ranks = [np.searchsorted(cumulative, rng.random(LOOKUPS)) for _ in range(BATCHES)]
    shuffled = rng.permutation(ROWS)
    return [shuffled[np.minimum(rank, ROWS - 1)] for rank in ranks]


def gradient() -> np.ndarray[Any, Any]:
    """Return an output gradient."""
    return np.random.default_rng(1).standard_normal((BAGS, DIM)).astype(np.float32)


def ours(
    precision: str, optimizer: str, cache: mpe.CacheConfig | None = None
) -> mpe.EmbeddingBagCollection:
    """Return a collection of one table."""
    table = mpe.TableConfig("t", ROWS, DIM, precision=precision)
    return mpe.EmbeddingBagCollection(
        [table], optimizer=OPTIMIZERS[optimizer](lr=0.01), cache=cache
    )


def fbgemm(precision: str, optimizer: str) -> Any:
    """Return FBGEMM's table-batched embedding of one table on the CPU."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=kinds[optimizer],
        learning_rate=0.01,
        weights_precision=SparseType(precision),
    )


def forward_ours(precision: str, indices: list[Any]) -> Step:
    """Return mpembed's forward without training."""
    emb = ours(precision, "sgd")
    out = np.empty((BAGS, DIM), np.float32)
    return lambda i: emb.forward(indices[i % BATCHES], OFFSETS, out=out, training=False)


def forward_torch(indices: list[Any]) -> Step:
    """Return torch.nn.EmbeddingBag's forward (FP32)."""
    import torch

    bag = torch.nn.EmbeddingBag(ROWS, DIM, mode="sum")
    offsets = torch.from_numpy(OFFSETS[:-1])
    tensors = [torch.from_numpy(x) for x in indices]

    def run(i: int) -> Any:
        with torch.no_grad():
            return bag(tensors[i % BATCHES], offsets)

    return run


def forward_fbgemm(precision: str, indices: list[Any]) -> Step:
    """Return FBGEMM's forward."""
    import torch

    bag = fbgemm(precision, "sgd")
    offsets = torch.from_numpy(OFFSETS)
    tensors = [torch.from_numpy(x) for x in indices]

    def run(i: int) -> Any:
        with torch.no_grad():
            return bag(tensors[i % BATCHES], offsets)

    return run


def train_ours(
    precision: str, optimizer: str, indices: list[Any], cache: mpe.CacheConfig | None = None
) -> Step:
    """Return mpembed's forward and fused backward."""
    emb, grad = ours(precision, optimizer, cache), gradient()

    def run(i: int) -> None:
        emb.forward(indices[i % BATCHES], OFFSETS)
        emb.backward(grad)

    return run


def train_fbgemm(precision: str, optimizer: str, indices: list[Any]) -> Step:
    """Return FBGEMM's forward and fused backward."""
    import torch

    bag, grad = fbgemm(precision, optimizer), torch.from_numpy(gradient())
    offsets = torch.from_numpy(OFFSETS)
    tensors = [torch.from_numpy(x) for x in indices]

    def run(i: int) -> None:
        bag(tensors[i % BATCHES], offsets).backward(grad)

    return run
