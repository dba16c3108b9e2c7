"""Replicas of a model under ``DistributedDataParallel``: all update the same rows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mpembed.collection import EmbeddingBagCollection
from mpembed.torch._kept_lookups import Lookup, Values, merged
from mpembed.torch._state import load, state_of


class Replicas:
    """The processes that train one model with ``DistributedDataParallel``."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = weakref.ref(model)
        self._group: Any = model.process_group
        self.size = dist.get_world_size(self._group)

    def of(self, model: DistributedDataParallel) -> bool:
        """Whether these are the processes of a model."""
        return self._model() is model

    @property
    def alive(self) -> bool:
        """Whether the model still exists."""
        return self._model() is not None

    @property
    def synchronise(self) -> bool:
        """Whether this backward adds the gradients of all; False under ``no_sync()``."""
        model = self._model()
        return model is not None and bool(model.require_backward_grad_sync)

    def share_state(self, collection: EmbeddingBagCollection) -> None:
        """Give all the state of the first, as ``DistributedDataParallel`` does for parameters."""
        state = state_of(collection)
        first = dist.get_global_rank(self._group, 0)
        layout: list[Any] = [{k: v for k, v in state.items() if k != "arrays"}]
        dist.broadcast_object_list(layout, first, self._group)
        arrays = {}
        for name, tensor in state["arrays"].items():
            arrays[name] = tensor.clone()
            dist.broadcast(arrays[name], first, self._group)
        if dist.get_rank(self._group) != 0:
            load(collection, {**layout[0], "arrays": arrays})

    def gather(
        self, collection: EmbeddingBagCollection, lookups: Sequence[Lookup], device: torch.device
    ) -> list[Lookup]:
        """Return the lookups of all processes, in their order, with the mean's share of each.

        Every process must call it, those without lookups as well.
        """
        own = merged(lookups, len(collection.tables)) if lookups else _empty(collection, device)
        values = _list(collection, own.values)
        has_weights = int(own.weights is not None)
        sizes = [own.indices.shape[0], own.offsets.shape[0], has_weights]
        sizes += [value.shape[0] for value in values]
        counts = self._all(torch.tensor(sizes, dtype=torch.int64, device=device))
        number = torch.stack(counts).cpu().tolist()
        indices = self._padded(own.indices.long(), [n[0] for n in number])
        offsets = self._padded(own.offsets.long(), [n[1] for n in number])
        weights: Sequence[Tensor | None] = [None] * self.size
        if any(n[2] for n in number):
            mine = own.weights
            if mine is None:
                mine = torch.ones(own.indices.shape[0], dtype=torch.float32, device=device)
            weights = self._padded(mine, [n[0] for n in number])
        columns = [
            self._padded(value / self.size, [n[3 + i] for n in number])
            for i, value in enumerate(values)
        ]
        return [
            Lookup(
                indices[rank],
                offsets[rank],
                weights[rank],
                _values(collection, own.values, [one[rank] for one in columns]),
            )
            for rank in range(self.size)
        ]

    def _all(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own.contiguous(), self._group)
        return found

    def _padded(self, own: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return every process's tensor; they differ in their numbers of rows."""
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: own.shape[0]] = own
        return [one[:count] for one, count in zip(self._all(padded), counts, strict=True)]


def _is_dict(collection: EmbeddingBagCollection) -> bool:
    return any(table.pooling == "none" for table in collection.tables)


def _list(collection: EmbeddingBagCollection, values: Values) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [values[table.name] for table in collection.tables]


def _values(collection: EmbeddingBagCollection, like: Values, parts: list[Tensor]) -> Values:
    if isinstance(like, Tensor):
        return parts[0]
    names = [table.name for table in collection.tables]
    return dict(zip(names, parts, strict=True))


def _empty(collection: EmbeddingBagCollection, device: torch.device) -> Lookup:
    """Return a lookup of no bags."""
    tables = collection.tables
    indices = torch.zeros(0, dtype=torch.int64, device=device)
    offsets = torch.zeros(1, dtype=torch.int64, device=device)
    values: Values
    if _is_dict(collection):
        values = {t.name: torch.zeros(0, t.embedding_dim, device=device) for t in tables}
    else:
        values = torch.zeros(0, sum(t.embedding_dim for t in tables), device=device)
    return Lookup(indices, offsets, None, values)


def replicas_of(known: Replicas | None, collection: EmbeddingBagCollection) -> Replicas | None:
    """Return the replicas of the model whose forward is running, else those known before.

    When a model is met for the first time, its tables get the state of the first process.
    """
    model = DistributedDataParallel._get_active_ddp_module()
    if model is None:
        return known if known is not None and known.alive else None
    joins = getattr(model, "_join_config", None)
    if joins is not None and joins.enable:
        raise RuntimeError(
            "DistributedDataParallel.join() does not work with tables: a process that has run out "
            "of batches would not gather gradients; give it empty ones"
        )
    if known is not None and known.of(model):
        return known
    found = Replicas(model)
    if found.size == 1:
        return None
    found.share_state(collection)
    return found
