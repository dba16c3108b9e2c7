"""Tickets: handles of open batches, from a forward or prefetch to the backward."""

import weakref
from typing import Protocol

from mpembed._bindings.contract import MAX_PINS
from mpembed._collection.open_batch import OpenBatch

MAX_OPEN = MAX_PINS  # each pins its rows once


class TicketOwner(Protocol):
    """The collection's record of its open batches."""

    def close(self, ticket: "Ticket") -> None:
        """Unpin the rows of a ticket's batch."""

    def abandon(self, ticket: "Ticket") -> None:
        """Close the batch of a ticket that is being garbage collected."""


class Ticket:
    """A batch whose rows are pinned in the cache until ``backward`` uses it or it is dropped.

    Made by ``forward(..., ticket=True)`` and ``prefetch``. A ticket of a forward is
    dropped when it is garbage collected. The collection keeps a prefetch's ticket: only ``drop``
    and ``EmbeddingBagCollection.drop_prefetched`` drop it.
    """

    __slots__ = ("__weakref__", "_batch", "_owner")

    def __init__(self, owner: TicketOwner, batch: OpenBatch) -> None:
        if not isinstance(batch, OpenBatch):
            raise TypeError("a ticket is made by forward(..., ticket=True) or by prefetch")
        self._owner = weakref.ref(owner)
        self._batch = batch

    @property
    def open(self) -> bool:
        """Whether the batch still waits for its backward."""
        return self._batch.open

    @property
    def batch_size(self) -> int:
        """Bags a table."""
        return self._batch.batch_size

    @property
    def num_indices(self) -> int:
        """Indices of all tables."""
        return self._batch.num_indices

    @property
    def weighted(self) -> bool:
        """Whether the forward had per-sample weights."""
        return self._batch.weighted

    @property
    def nbytes(self) -> int:
        """Bytes of workspace that the ticket holds."""
        return self._batch.nbytes

    def drop(self) -> None:
        """Unpin the rows without a backward; dropping twice is harmless."""
        owner = self._owner()
        if self._batch.open and owner is not None:
            owner.close(self)

    def __del__(self) -> None:
        batch = getattr(self, "_batch", None)
        if batch is not None and batch.open:
            owner = self._owner()
            if owner is not None:
                owner.abandon(self)

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<{state} Ticket: {self.batch_size} bags a table, {self.num_indices} indices>"


def batch_of(ticket: Ticket) -> OpenBatch:
    """Return a collection's own record of a ticket's batch."""
    return ticket._batch


def owned_by(ticket: Ticket, owner: TicketOwner) -> bool:
    """Return whether this owner made a ticket."""
    return ticket._owner() is owner
