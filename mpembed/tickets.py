"""Open batches: what a forward or prefetch leaves for the backward."""

import weakref
from typing import TYPE_CHECKING

from mpembed import _cpu

if TYPE_CHECKING:
    from mpembed.collection import EmbeddingBagCollection

MAX_OPEN = 127  # a slot counts its pins in 7 bits


class Ticket:
    """A batch whose rows are pinned in the cache until ``backward`` uses it or it is dropped.

    Made by ``forward(..., ticket=True)`` and ``prefetch``. A ticket that is garbage collected is
    dropped.
    """

    def __init__(
        self,
        collection: "EmbeddingBagCollection",
        lookups: list[_cpu.Lookups],
        batch_size: int,
        num_indices: int,
        *,
        weighted: bool,
    ) -> None:
        self._collection = weakref.ref(collection)
        self.lookups = lookups
        self.batch_size = batch_size
        self.num_indices = num_indices
        self.weighted = weighted
        self.open = True

    @property
    def nbytes(self) -> int:
        """Bytes of workspace that the ticket holds."""
        return sum(part.nbytes for part in self.lookups)

    def belongs_to(self, collection: "EmbeddingBagCollection") -> bool:
        """Whether this collection made the ticket."""
        return self._collection() is collection

    def same_batch(self, lookups: list[_cpu.Lookups]) -> bool:
        """Whether a batch asks for the same rows in the same bags."""
        pairs = zip(self.lookups, lookups, strict=True)
        return all(mine.same_rows(theirs) for mine, theirs in pairs)

    def drop(self) -> None:
        """Unpin the rows without a backward; dropping twice is harmless."""
        collection = self._collection()
        if self.open and collection is not None:
            collection._close(self)

    def __del__(self) -> None:
        if getattr(self, "open", False):
            self.drop()

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<{state} Ticket: {self.batch_size} bags a table, {self.num_indices} indices>"
