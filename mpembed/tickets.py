"""Open batches: what a forward or prefetch leaves for the backward."""

import weakref
from typing import TYPE_CHECKING, Any

from mpembed import _core

if TYPE_CHECKING:
    from mpembed._engine import Engine

MAX_OPEN = 127  # a slot counts its pins in 7 bits


class Ticket:
    """A batch whose rows are pinned in the cache until ``backward`` uses it or it is dropped.

    Made by ``forward(..., ticket=True)`` and ``prefetch``. A ticket that is garbage collected is
    dropped.
    """

    def __init__(
        self,
        engine: "Engine",
        lookups: list[_core.Lookups],
        batch_size: int,
        num_indices: int,
        *,
        weighted: bool,
    ) -> None:
        self._engine = weakref.ref(engine)
        self.lookups = lookups
        self.batch_size = batch_size
        self.num_indices = num_indices
        self.weighted = weighted
        self.open = True

    @property
    def nbytes(self) -> int:
        """Bytes of workspace that the ticket holds."""
        return sum(part.nbytes for part in self.lookups)

    def belongs_to(self, engine: "Engine") -> bool:
        """Whether this collection's engine made the ticket."""
        return self._engine() is engine

    def parts(self, groups: list[Any]) -> list[tuple[Any, _core.Lookups]]:
        """Return each group with its share of the batch."""
        return list(zip(groups, self.lookups, strict=True))

    def same_batch(self, lookups: list[_core.Lookups]) -> bool:
        """Whether a batch asks for the same rows in the same bags."""
        pairs = zip(self.lookups, lookups, strict=True)
        return all(mine.same_rows(theirs) for mine, theirs in pairs)

    def take_weights(self, lookups: list[_core.Lookups], *, weighted: bool) -> None:
        """Use the per-sample weights of the forward that takes a prefetch over."""
        self.weighted = weighted
        for mine, theirs in zip(self.lookups, lookups, strict=True):
            mine.take_weights(theirs)

    def drop(self) -> None:
        """Unpin the rows without a backward; dropping twice is harmless."""
        engine = self._engine()
        if self.open and engine is not None:
            engine.close(self)

    def __del__(self) -> None:
        if getattr(self, "open", False):
            self.drop()

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<{state} Ticket: {self.batch_size} bags a table, {self.num_indices} indices>"
