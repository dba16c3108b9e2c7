"""FBGEMM's table-batched embeddings."""

from __future__ import annotations

from typing import Any

from arena import AbsentError
from workloads import BETWEEN, LR, Shape


def operator(
    tables: list[tuple[int, int]], precision: str, optimizer: str, lr: float, *, gpu: bool = False
) -> Any:
    """Return the operator that trains `tables`, pairs of a number of rows and a dimension."""
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
    place = EmbeddingLocation.DEVICE if gpu else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if gpu else ComputeDevice.CPU
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, place, compute) for rows, dim in tables],
        optimizer=kinds[optimizer],
        learning_rate=lr,
        weights_precision=SparseType(precision),
    )


def training(shape: Shape, precision: str, optimizer: str) -> Any:
    """Return tables of the operator that trains."""
    bag = operator([(shape.rows, shape.dim)] * shape.tables, precision, optimizer, LR)
    # Without it, all untouched pages would be the same page of zeros in memory.
    bag.init_embedding_weights_uniform(-0.001, 0.001)
    return bag


def inference(shape: Shape, precision: str) -> Any:
    """Return tables of the operator that reads INT8 and INT4."""
    if precision in BETWEEN:
        raise AbsentError(f"FBGEMM has no {precision}")
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    kind = SparseType(precision)
    tables = [
        (f"t{t}", shape.rows, shape.dim, kind, EmbeddingLocation.HOST) for t in range(shape.tables)
    ]
    bag = IntNBitTableBatchedEmbeddingBagsCodegen(
        tables, device="cpu", output_dtype=SparseType.FP32
    )
    bag.fill_random_weights()
    return bag
