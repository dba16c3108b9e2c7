"""All rows of a table at once, as a tensor of PyTorch's: read, checked, set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mpembed import devices, registry
from mpembed._bindings import kernels
from mpembed._bindings.dlpack import view
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import TableConfig
from mpembed.torch._dense import why_not_dense
from mpembed.torch._exchange import current_stream, tensor_of

_CHUNK = 1 << 22  # values that are copied at a time


def _pieces(table: TableConfig) -> Iterator[tuple[int, int]]:
    each = max(1, _CHUNK // table.embedding_dim)
    for begin in range(0, table.num_embeddings, each):
        yield begin, min(begin + each, table.num_embeddings)


def read_table(
    collection: EmbeddingBagCollection, table: TableConfig, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return all rows of a table as they are now, cached or not, in memory of their own."""
    device = torch.device(collection.device)
    shape = table.num_embeddings, table.embedding_dim
    result = torch.empty(shape, dtype=dtype, device=device)
    for begin, end in _pieces(table):
        ids = torch.arange(begin, end, device=device)
        values = collection.rows(table.name, ids, stream=current_stream(device))
        result[begin:end] = tensor_of(values)
    return result


def check_weight(key: str, table: TableConfig, weight: Any) -> None:
    """Raise ValueError if a tensor cannot become the rows of a table; `key` names the tensor."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        what = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{key} must be a tensor of a floating type, got {what}")
    why = why_not_dense(weight)
    if why:
        raise ValueError(f"{key} {why}")
    shape = torch.Size((table.num_embeddings, table.embedding_dim))
    if weight.shape != shape:
        raise ValueError(
            f"size mismatch for {key}: its shape is {weight.shape}, the table's is {shape}"
        )
    on, precision = devices.get("cpu").stream(None), registry.FORMATS[table.precision]
    for begin, end in _pieces(table):
        values = weight[begin:end].detach().to("cpu", torch.float32).contiguous()
        matrix = view(values, key, on)
        found = kernels.unstorable(matrix, end - begin, table.embedding_dim, precision, on)
        if found is not None:
            raise ValueError(
                f"{key}: row {begin + found[0]} is not finite or exceeds the range of "
                f"{table.precision}"
            )


def write_table(collection: EmbeddingBagCollection, table: TableConfig, weight: Tensor) -> None:
    """Set all rows of a table to a tensor that `check_weight` accepts.

    Cached rows are set in FP32, others are rounded. The optimizer's state does not change.
    """
    device = torch.device(collection.device)
    for begin, end in _pieces(table):
        values = weight[begin:end].detach().to(device, torch.float32).contiguous()
        ids = torch.arange(begin, end, device=device)
        collection.set_rows(table.name, ids, values, stream=current_stream(device))
