"""Open batches: what a forward or prefetch leaves for the backward."""

import weakref
from typing import TYPE_CHECKING, Any

from mpembed._bindings import kernels
from mpembed._bindings.contract import MAX_PINS
from mpembed._bindings.view import View

if TYPE_CHECKING:
    from mpembed._collection.open_batches import OpenTickets

MAX_OPEN = MAX_PINS  # each pins its rows once


class Ticket:
    """A batch whose rows are pinned in the cache until ``backward`` uses it or it is dropped.

    Made by ``forward(..., ticket=True)`` and ``prefetch``. A forward's ticket that is garbage
    collected is dropped. A prefetch's is kept by the collection: it is dropped by ``drop``, by
    ``EmbeddingBagCollection.drop_prefetched``, or by nothing.
    """

    __slots__ = (
        "__weakref__",
        "_arguments",
        "_batch_size",
        "_capture",
        "_engine",
        "_lookups",
        "_named_counts",
        "_num_indices",
        "_open",
        "_shapes",
        "_weighted",
    )

    def __init__(
        self,
        engine: "OpenTickets",
        lookups: list[kernels.Lookups],
        batch_size: int,
        num_indices: int,
        *,
        weighted: bool,
        capture: int,
    ) -> None:
        self._capture = capture  # in which the batch was opened, 0 outside of all
        self._engine = weakref.ref(engine)
        self._lookups = lookups
        self._batch_size = batch_size
        self._num_indices = num_indices
        self._weighted = weighted
        self._open = True
        # A prefetch's indices and offsets, kept so that their memory is not another's meanwhile.
        self._arguments: list[View] = []
        self._shapes: Any = None  # of the outputs
        # Indices of each table where the weights came as a dict, and so will their gradient.
        self._named_counts: dict[str, int] | None = None

    @property
    def open(self) -> bool:
        """Whether the batch still waits for its backward."""
        return self._open

    @property
    def batch_size(self) -> int:
        """Bags a table."""
        return self._batch_size

    @property
    def num_indices(self) -> int:
        """Indices of all tables."""
        return self._num_indices

    @property
    def weighted(self) -> bool:
        """Whether the forward had per-sample weights."""
        return self._weighted

    @property
    def nbytes(self) -> int:
        """Bytes of workspace that the ticket holds."""
        return sum(part.nbytes for part in self._lookups)

    def _belongs_to(self, engine: "OpenTickets") -> bool:
        """Whether this collection's engine made the ticket."""
        return self._engine() is engine

    def _parts(self, groups: list[Any]) -> list[tuple[Any, kernels.Lookups]]:
        """Return each group with its share of the batch."""
        return list(zip(groups, self._lookups, strict=True))

    def _same_rows(self, lookups: list[kernels.Lookups]) -> bool:
        """Whether a batch of the CPU asks for the same rows in the same bags."""
        pairs = zip(self._lookups, lookups, strict=True)
        return all(mine.same_rows(theirs) for mine, theirs in pairs)

    def _same_arrays(self, arguments: list[View]) -> bool:
        """Whether a batch lies in the memory of this prefetch."""
        return [_place(a) for a in self._arguments] == [_place(a) for a in arguments]

    def _take_weights(self, lookups: list[kernels.Lookups], *, weighted: bool) -> None:
        """Use the per-sample weights of the forward that takes a prefetch over."""
        self._weighted = weighted
        for mine, theirs in zip(self._lookups, lookups, strict=True):
            mine.take_weights(theirs)

    def _close(self) -> list[kernels.Lookups]:
        """Give the lookups up, whose pins the engine takes back."""
        lookups, self._lookups, self._open = self._lookups, [], False
        self._arguments = []
        return lookups

    def drop(self) -> None:
        """Unpin the rows without a backward; dropping twice is harmless."""
        engine = self._engine()
        if self._open and engine is not None:
            engine.close(self)

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            engine = self._engine()
            if engine is not None:
                engine.abandon(self)

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<{state} Ticket: {self._batch_size} bags a table, {self._num_indices} indices>"


def _place(array: View) -> tuple[int, int, str]:
    return array.address, array.size, array.dtype
