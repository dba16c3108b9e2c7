"""The gradient of per-sample weights from the rows alone, where no batch is open."""

from __future__ import annotations

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection
from mpembed.torch._exchange import tensor_of
from mpembed.torch._kept_lookups import Lookup, tables_of


def weight_grad(collection: EmbeddingBagCollection, lookup: Lookup, stream: int | None) -> Tensor:
    """Return the gradient of each weight of a lookup (N,): its row times its bag's gradient."""
    found = []
    for table, part in zip(collection.tables, tables_of(collection, lookup), strict=True):
        known = (part.indices >= 0) & (part.indices < table.num_embeddings)
        ids = torch.where(known, part.indices, 0)
        rows = collection.rows(table.name, ids, stream=stream)
        grads = part.grad.index_select(0, part.bags)
        found.append((tensor_of(rows) * grads).sum(1) * known)
    return torch.cat(found)
