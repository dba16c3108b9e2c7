"""One forward of all ranks, and its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.torch._batch import prepare
from mpembed.torch.distributed._owner import OwnerBatch
from mpembed.torch.distributed._plan import ShardedTable
from mpembed.torch.distributed._ranks import BACKWARD, EVALUATION, TRAINING, Header, Ranks
from mpembed.torch.distributed._routes import find_routes

T = TypeVar("T")


class ShardedCall:
    """A forward of all ranks.

    Parameters
    ----------
    tables : sequence of ShardedTable
        All.
    ranks : Ranks
        The process group.
    local : mpembed.EmbeddingBagCollection
        The shards of this rank.
    number : int
        Of the forward, the same on all ranks.
    divisor : int
        Of gradients.
    training : bool
        Whether a backward follows.
    """

    def __init__(
        self,
        tables: Sequence[ShardedTable],
        ranks: Ranks,
        local: EmbeddingBagCollection,
        number: int,
        divisor: int,
        *,
        training: bool,
    ) -> None:
        self._tables, self._ranks, self._local = tables, ranks, local
        self._number, self._divisor, self._training = number, divisor, training
        self._here = [
            [t for t, table in enumerate(tables) if rank in table.ranks]
            for rank in range(ranks.size)
        ]
        self._dims = [table.config.embedding_dim for table in tables]
        self._announced = False

    def drops(self) -> bool:
        """Whether an index that is out of range is dropped."""
        return bool(collection_state(self._local).settings.bounds == "drop")

    @contextmanager
    def refused_by_all(self) -> Iterator[None]:
        """Tell the other ranks of an exception that comes before they know of the call."""
        try:
            yield
        except Exception as error:
            if not self._announced:
                self._refuse(TRAINING if self._training else EVALUATION, error)
            raise

    def _refuse(self, kind: int, error: Exception | None) -> None:
        """Make a call without indices, which raises on all ranks where one has an error."""
        header = Header(kind, self._number, failed=int(error is not None))
        self._ranks.announce(header, [[0] * len(one) for one in self._here], error)

    def look_up(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int] = ()
    ) -> Tensor:
        """Return the output (B, sum of D) of this rank's batch; `order` as in `_feature_order`."""
        batch = prepare(indices, offsets, weights, order)
        own = batch.indices, batch.offsets, batch.weights
        dtype = index_dtype(self._tables)
        self._routes = find_routes(self._tables, own, dtype, self.drops)
        bags = (own[1].shape[0] - 1) // len(self._tables)
        kind = TRAINING if self._training else EVALUATION
        header = Header(kind, self._number, 0, bags, int(weights is not None))
        if not self._training:
            return self.run(header)
        anchor = torch.empty(0, requires_grad=True)  # so that the backward is reached
        apply: Callable[..., Tensor] = _Lookup.apply
        return apply(anchor, self, header)

    def _by_rank(self, by_table: Sequence[Sequence[T]]) -> list[list[T]]:
        """Return what there is for each shard of each table, by ranks."""
        starts = [table.ranks.start for table in self._tables]
        return [[by_table[t][r - starts[t]] for t in here] for r, here in enumerate(self._here)]

    def run(self, header: Header) -> Tensor:
        """Send, look up what was received, return the answers, and pool them."""
        counts = self._by_rank([route.counts for route in self._routes])
        self._announced = True
        headers, received = self._ranks.announce(header, counts)
        with self._ranks.midway():
            return self._answered(header, counts, headers, received)

    def _answered(
        self,
        header: Header,
        counts: list[list[int]],
        headers: list[Header],
        received: list[list[int]],
    ) -> Tensor:
        ranks, tables = self._ranks, self._tables
        here = [tables[t] for t in self._here[ranks.rank]]
        self._owned = owned = OwnerBatch(here, self._local, headers, received)
        weighted = any(one.weighted for one in headers)
        parts = self._by_rank([route.sent(weighted=weighted) for route in self._routes])
        flat = [[part for several in one for part in several] for one in parts]
        answers = owned.look_up(
            ranks.exchange(flat, owned.parts, index_dtype(tables)), training=self._training
        )

        def sizes(rank: int) -> list[int]:
            pairs = zip(self._here[rank], counts[rank], strict=True)
            return [tables[t].values(header.batch_size, n) for t, n in pairs]

        by_table: list[list[Tensor]] = [[] for _ in tables]
        for rank, vectors in enumerate(ranks.exchange(answers, sizes, torch.float32)):
            for t, one in zip(self._here[rank], vectors, strict=True):
                by_table[t].append(one)
        pairs = zip(self._routes, by_table, strict=True)
        return torch.cat([route.pool(vectors) for route, vectors in pairs], dim=1)

    def backward(self, grad: Tensor) -> None:
        """Send the gradients to the ranks of the rows, and update those that are here."""
        error = None
        if torch.is_grad_enabled():
            error = RuntimeError("the backward of mpembed's tables cannot be differentiated")
        elif not self._owned.is_open:
            error = RuntimeError("the forward of this backward was used already")
        self._refuse(BACKWARD, error)
        with self._ranks.midway():
            columns = (grad.float() / self._divisor).split(self._dims, dim=1)
            pairs = zip(self._routes, columns, strict=True)
            parts = self._by_rank([route.spread(one) for route, one in pairs])
            self._owned.update(self._ranks.exchange(parts, self._owned.values, torch.float32))


def index_dtype(tables: Sequence[ShardedTable]) -> torch.dtype:
    """Return as what indices are sent."""
    small = all(table.config.num_embeddings < 2**31 for table in tables)
    return torch.int32 if small else torch.int64


class _Lookup(torch.autograd.Function):
    """A training forward, whose backward updates the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: ShardedCall, header: Header) -> Tensor:
        """Look up; `anchor` requires grad, so that the backward is reached."""
        ctx.call = call
        return call.run(header)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Update; nothing else gets a gradient."""
        ctx.call.backward(*grads)
        return None, None, None
