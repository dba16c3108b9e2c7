"""The rank of the rows: the bags of all ranks are looked up, and updated, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.tickets import Ticket
from mpembed.torch._exchange import current_stream, tensor_of
from mpembed.torch.distributed._plan import ShardedTable
from mpembed.torch.distributed._ranks import Header
from mpembed.torch.distributed._routes import FLOATS


class OwnerBatch:
    """What the ranks ask of this one. In each table their bags come in the order of the ranks.

    Parameters
    ----------
    tables : sequence of ShardedTable
        Those with a shard here.
    local : mpembed.EmbeddingBagCollection
        The shards; an empty table where there are none.
    headers : sequence of Header
        Of each rank.
    counts : sequence of sequence of int
        How many indices each rank sends for each table.
    """

    def __init__(
        self,
        tables: Sequence[ShardedTable],
        local: EmbeddingBagCollection,
        headers: Sequence[Header],
        counts: Sequence[Sequence[int]],
    ) -> None:
        self._tables, self._local, self._counts = tables, local, counts
        self._bags = [one.batch_size for one in headers]
        self._weighted = any(one.weighted for one in headers)
        self._dims = [table.embedding_dim for table in local.tables]
        self._device = torch.device(local.device)
        self._ticket: Ticket | None = None

    @property
    def is_open(self) -> bool:
        """Whether the update is still to come."""
        return self._ticket is not None and self._ticket.open

    def parts(self, rank: int) -> list[int]:
        """Return the sizes of what a rank sends for each table: as `Route.sent` has it."""
        bags, found = self._bags[rank], []
        for table, count in zip(self._tables, self._counts[rank], strict=True):
            found.append([count] if table.sends_rows else [bags, count])
            if self._weighted and not table.sends_rows:
                found.append([count])
        return list(chain(*found))

    def values(self, rank: int) -> list[int]:
        """Return how many floats each table answers a rank with."""
        pairs = zip(self._tables, self._counts[rank], strict=True)
        return [table.values(self._bags[rank], count) for table, count in pairs]

    def look_up(self, sent: Sequence[Sequence[Tensor]], *, training: bool) -> list[list[Tensor]]:
        """Return the values for each rank, by table; `sent` is of the sizes `parts`."""
        batch, stream = self._batch(sent), current_stream(self._device)
        found: Any = self._local.forward(*batch, stream=stream, training=training, ticket=training)
        if training:
            found, self._ticket = found
            # The autograd graph alone decides how long the batch stays open.
            collection_state(self._local).engine.detach(self._ticket)
        if isinstance(found, dict):
            outputs = [tensor_of(found[table.config.name]) for table in self._tables]
        else:
            outputs = list(tensor_of(found).split(self._dims, 1))[: len(self._tables)]
        sizes = zip(*map(self.values, range(len(sent))), strict=True)
        answers = [one.flatten().split(size) for one, size in zip(outputs, sizes, strict=True)]
        return [[one[rank] for one in answers] for rank in range(len(sent))]

    def _batch(self, sent: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the indices, offsets and weights of all ranks, table-major."""
        start = torch.zeros(1, dtype=torch.int64, device=self._device)
        indices, lengths, weights = [start[:0]], [start], [start[:0].float()]
        parts = zip(*sent, strict=True)  # one of each rank
        for table in self._tables:
            if not table.sends_rows:
                lengths += next(parts)
                if self._weighted:
                    weights += [one.view(FLOATS[one.dtype]).float() for one in next(parts)]
            own = next(parts)
            indices += own
            if table.sends_rows:  # unpooled: it does not matter in which bag an index is
                count = sum(one.shape[0] for one in own)
                lengths.append(start.new_zeros(sum(self._bags)))
                lengths[-1][:1] = count
                weights.append(start.new_ones(count, dtype=torch.float32))
        offsets = torch.cat(lengths).cumsum(0)
        return torch.cat(indices), offsets, torch.cat(weights) if self._weighted else None

    def update(self, grads: Sequence[Sequence[Tensor]]) -> None:
        """Update the rows once; `grads` has the gradients of the values."""
        columns = zip(zip(*grads, strict=True), self._dims, strict=False)
        found = [torch.cat(column).view(-1, dim) for column, dim in columns]
        grad: Any
        if any(table.sends_rows for table in self._tables):
            grad = {t.config.name: one for t, one in zip(self._tables, found, strict=True)}
        else:
            empty = torch.zeros(0, self._dims[0], device=self._device)
            grad = torch.cat(found or [empty], dim=1)
        stream = current_stream(self._device)
        self._local.backward(grad, self._ticket, stream=stream, weight_grad=False)
