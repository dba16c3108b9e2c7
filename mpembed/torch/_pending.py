"""Gradients of lookups that are kept for one update: of a step, or of all replicas of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection
from mpembed.tickets import Ticket
from mpembed.torch._kept_lookups import Lookup, merged, norm_of_rows
from mpembed.torch._stand_in import StandIn

_MANY_WAITING, _MANY_LOST = 1000, 50  # no ordinary accumulation, no scaler's first steps
_STAND_IN = (0.6, 0.8)  # a vector of norm 1: clipping its elements does not keep its direction


class Update:
    """One update of what waits. Whether it has happened is asked of its ticket.

    An exception (Ctrl-C) may come between any two lines. The backward alone happens or does not, as
    a whole, and uses the ticket up.
    """

    __slots__ = ("_ticket",)

    def __init__(self) -> None:
        self._ticket: Ticket | None = None

    @property
    def happened(self) -> bool:
        """Whether the rows have it."""
        return self._ticket is not None and not self._ticket.open

    def make(
        self, collection: EmbeddingBagCollection, lookups: Sequence[Lookup], stream: int | None
    ) -> None:
        """Update the rows of several lookups once."""
        one = merged(lookups, len(collection.tables))
        _, ticket = collection.forward(
            one.indices, one.offsets, one.weights, stream=stream, ticket=True
        )
        self._ticket = ticket
        collection.backward(one.values, ticket, stream=stream, weight_grad=False)

    def give_up(self) -> None:
        """Unpin the rows of an update that has not happened."""
        ticket, self._ticket = self._ticket, None  # a ticket that is dropped looks used
        if ticket is not None:
            ticket.drop()


@dataclass(frozen=True, slots=True)
class _Kept:
    """What waits. It changes as a whole, so that no exception finds half of a change.

    Attributes
    ----------
    lookups : list of (int, Lookup)
        With their places among the forwards.
    shared : int
        How many of them, from the first on, are of all replicas.
    stand_in : (Tensor, Tensor) or None
        As others may scale it, and as it was.
    as_added : bool
        Whether nobody has read the stand-in.
    """

    lookups: list[tuple[int, Lookup]]
    shared: int = 0
    stand_in: tuple[Tensor, Tensor] | None = None
    as_added: bool = True


class Pending:
    """The lookups of a module whose update waits.

    Parameters
    ----------
    collection : mpembed.EmbeddingBagCollection
        The module's.
    """

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        self._collection = collection
        self._kept = _Kept([])
        self._update: Update | None = None  # of all that is kept; begun, and perhaps interrupted
        self._dropped = False  # since the last one was added
        self._lost = 0  # how often all were dropped since the last update

    def __bool__(self) -> bool:
        self.end_update()
        return bool(self._kept.lookups)

    @property
    def is_as_added(self) -> bool:
        """Whether nobody has read the stand-in, so that nothing was scaled."""
        self.end_update()
        return self._kept.as_added

    @property
    def dropped(self) -> bool:
        """Whether lookups were dropped since the last one was added."""
        self.end_update()
        return self._dropped

    def begin_update(self, update: Update) -> None:
        """Remember an update of all that is kept, which follows."""
        self._update = update

    def end_update(self) -> None:
        """Forget what is kept if an update of it was begun and has happened; else keep it."""
        update = self._update
        if update is None:
            return
        if update.happened:
            self._kept = _Kept([])
            self._lost, self._dropped = 0, False
        else:
            update.give_up()
        self._update = None  # last: until then this can be done again

    def add(self, number: int, lookup: Lookup) -> None:
        """Keep a lookup; `number` is its place among the forwards."""
        kept = self._scaled()
        self._kept = _Kept(kept.lookups, kept.shared)
        kept.lookups.append((number, lookup))
        if len(kept.lookups) == _MANY_WAITING:
            warnings.warn(
                f"{_MANY_WAITING} lookups of tables wait for step() of the FusedOptimizer, and all "
                "are kept in memory: call it, or use update='backward'",
                stacklevel=2,
            )
        self._dropped = False

    def clear(self) -> None:
        """Drop all."""
        self.end_update()
        some = bool(self._kept.lookups)
        self._dropped = self._dropped or some
        lost = self._lost + some
        self._kept = _Kept([])
        if lost == _MANY_LOST > self._lost:
            self._lost = lost
            warnings.warn(
                f"gradients of tables were dropped {_MANY_LOST} times and applied not once: call "
                "step() of the FusedOptimizer after each backward",
                stacklevel=3,
            )
        self._lost = lost

    def lookups(self) -> list[tuple[int, Lookup]]:
        """Return all, scaled as the stand-in was, in the order of their forwards."""
        return sorted(self._scaled().lookups, key=lambda one: one[0])

    def own(self) -> list[Lookup]:
        """Return those of this process that the other replicas do not have."""
        kept = self._scaled()
        return [lookup for _, lookup in kept.lookups[kept.shared :]]

    def share(self, lookups: Sequence[Lookup]) -> None:
        """Put those of all replicas in the place of this process's own."""
        self.end_update()
        kept = self._kept
        number = max((number for number, _ in kept.lookups), default=0)
        every = [*kept.lookups[: kept.shared], *((number, one) for one in lookups)]
        self._kept = replace(kept, lookups=every, shared=len(every))

    def stand_in(self) -> Tensor:
        """Return two values whose L2 norm is that of the gradient of all rows."""
        self.end_update()
        kept = self._kept
        if kept.stand_in is not None:
            return kept.stand_in[0]
        one = merged([lookup for _, lookup in self.lookups()], len(self._collection.tables))
        norm = norm_of_rows(self._collection, one)
        made = torch.tensor(
            [norm * part for part in _STAND_IN], dtype=torch.float32, device=one.indices.device
        )
        stand_in = made.as_subclass(StandIn), made.clone()
        self._kept = replace(kept, stand_in=stand_in, as_added=False)
        return stand_in[0]

    def _scaled(self) -> _Kept:
        """Return what is kept, its gradients scaled as somebody has scaled the stand-in."""
        self.end_update()
        kept = self._kept
        if kept.stand_in is None:
            return kept
        scaled, before = kept.stand_in
        now = scaled.as_subclass(torch.Tensor)
        if torch.equal(now.view(torch.int32), before.view(torch.int32)):
            self._kept = replace(kept, stand_in=None)
        elif not now.any():  # zero_grad(set_to_none=False), perhaps of what is not finite
            self.clear()
        else:
            scale = _common_scale(now, before)
            lookups = [(number, one.scaled(scale)) for number, one in kept.lookups]
            self._kept = replace(kept, lookups=lookups, stand_in=None)
        return self._kept


def _common_scale(now: Tensor, before: Tensor) -> float:
    """Return the factor by which somebody has scaled a stand-in, rounded to FP32."""
    first, second = (now.double() / before.double()).tolist()
    if before.eq(0).all():
        first = second = 1.0
    if abs(first - second) > 1e-5 * abs(first):  # until they are dropped
        raise RuntimeError(
            "the gradient of tables was clipped by value, which needs every element: use "
            "clip_grad_value= of the module instead"
        )
    return float(torch.tensor(first, dtype=torch.float32))
