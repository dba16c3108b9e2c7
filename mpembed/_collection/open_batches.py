"""A collection's open batches, inside and outside of captures of CUDA graphs."""

import warnings
import weakref
from typing import Any

from mpembed._arguments import captures
from mpembed._bindings.device import CallOrder, Stream
from mpembed._bindings.kernels import Group
from mpembed.tickets import MAX_OPEN, Ticket, batch_of, owned_by


class OpenBatches:
    """Keeps the list of open batches and closes them."""

    def __init__(self, calls: CallOrder, groups: list[Group]) -> None:
        self.calls, self.groups = calls, groups
        self._pins = any(group.cached for group in groups)
        self._open: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self._prefetched: list[Ticket] = []
        self._implicit: Ticket | None = None
        self._latest: Ticket | None = None
        self._captured: weakref.WeakSet[Ticket] = weakref.WeakSet()  # open ones, of captures
        self._abandoned: list[Ticket] = []  # closed as soon as no capture forbids it
        self._graph_pins = 0  # the most pins that one launch of a graph holds

    @property
    def num_open(self) -> int:
        """Batches that wait for their backward."""
        return len(self._open)

    @property
    def num_prefetched(self) -> int:
        """Of these, prefetches that no forward has taken over."""
        return len(self._prefetched)

    @property
    def workspace(self) -> int:
        """Bytes held by open batches."""
        return sum(ticket.nbytes for ticket in [*self._open, *self._abandoned])

    def tickets_for_backward(self, tickets: list[Ticket | None], on: Stream) -> list[Ticket]:
        """Return the open tickets of forwards; for None it is the latest one's."""
        self._close_pending(on)
        used = [self._ticket_for_backward(ticket) for ticket in tickets]
        if len(used) > 1 and len(set(map(id, used))) < len(used):
            raise ValueError(
                "the same ticket comes twice: a forward is used once; sum its gradients first"
            )
        return used

    def _ticket_for_backward(self, ticket: Ticket | None) -> Ticket:
        used = self._latest if ticket is None else ticket
        if used is None:
            raise RuntimeError(
                "backward without a training forward (training=False leaves nothing to train)"
            )
        if not isinstance(used, Ticket):
            raise TypeError(f"ticket must be a Ticket, got {type(used).__name__}")
        if not owned_by(used, self):
            raise ValueError(
                "the ticket belongs to another collection: call the backward of the one whose "
                "forward made it"
            )
        if not used.open:
            raise RuntimeError("the forward of this backward was used already or dropped")
        if used in self._prefetched:
            raise RuntimeError("the ticket is a prefetch's: call forward first")
        return used

    def close(self, ticket: Ticket) -> None:
        """Unpin a ticket's rows and forget it; closing twice is harmless."""
        batch = batch_of(ticket)

        def refuse(on: Stream) -> None:
            if batch.open and batch.capture == 0:
                raise RuntimeError(
                    f"a batch that was opened outside the capture cannot be closed {captures.GRAPH}"
                )

        with self.calls.on_last_stream(refuse) as on:
            self._close_pending(on)
            if not batch.open:
                return
            if on.capture != 0:
                refuse(on)
            if batch.capture != on.capture:
                self._discard_captured([ticket])
                return
            self._forget(ticket)
            batch.opened.close(on)

    def detach(self, ticket: Ticket) -> None:
        """Stop using this ticket in a backward that is given none."""
        if self._latest is ticket:
            self._latest = None

    def _forget(self, ticket: Ticket) -> None:
        """Take a batch that is closed, or will be, from the lists."""
        batch_of(ticket).open, batch_of(ticket).arguments = False, []
        self._open.discard(ticket)
        if batch_of(ticket).capture != 0:
            self._captured.discard(ticket)
        if ticket in self._prefetched:
            self._prefetched.remove(ticket)

    def _forget_closed(self, tickets: list[Ticket]) -> None:
        """Forget those that a call of the step has closed."""
        for ticket in tickets:
            if not batch_of(ticket).opened.is_open:
                self._forget(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Close a ticket that nobody holds, now or after the capture that is going on."""
        try:
            self.close(ticket)
        except RuntimeError:  # in a capture; or for good, in a child forked at a bad moment
            if ticket.open:
                self._forget(ticket)  # the weak sets still have it: it is alive again
                batch_of(ticket).open = True
                self._abandoned.append(ticket)

    def _close_pending(self, on: Stream) -> None:
        """Forget what finished captures left open; close what waited for their end."""
        lost = []
        if len(self._captured) > 0:  # which costs less than to go through an empty weak set
            lost = [ticket for ticket in self._captured if batch_of(ticket).capture != on.capture]
        if on.capture == 0 and self._abandoned:
            self._close_abandoned()
        if lost:
            self._discard_captured(lost)

    def _close_abandoned(self) -> None:
        abandoned, self._abandoned = self._abandoned, []  # closing one comes here again
        try:
            while abandoned:
                self.close(abandoned[-1])
                abandoned.pop()
        finally:
            self._abandoned.extend(abandoned)

    def _discard_captured(self, tickets: list[Ticket]) -> None:
        """Forget tickets of a finished capture; their memory belongs to its graph."""
        for ticket in tickets:
            self._forget(ticket)
            batch_of(ticket).opened.forget()
        warnings.warn(
            "the capture of a CUDA graph ended before the backward of a forward or prefetch in it: "
            "do not launch that graph: each launch would pin rows that nothing unpins",
            RuntimeWarning,
            stacklevel=4,
        )

    def drop_all(self) -> None:
        """Drop every open batch."""
        for ticket in list(self._open):
            self.close(ticket)

    def drop_prefetched(self, on: Stream) -> int:
        """Drop all prefetches that no forward has taken over; return how many."""
        self._close_pending(on)
        waiting = list(self._prefetched)
        for ticket in waiting:
            self.close(ticket)
        return len(waiting)

    def _check_open_limit(self, freed: int, on: Stream) -> None:
        captured = len(self._captured)
        outside = len(self._open) - captured + len(self._abandoned)
        pins = self._graph_pins
        if on.capture != 0:  # a launch holds them for as long as it runs
            pins = max(pins, captured + 1 - freed)
        else:
            outside += 1 - freed
        # Without a cache nothing is pinned, but forgotten prefetches would pile up.
        if (outside + pins if self._pins else len(self._prefetched) + 1) > MAX_OPEN:
            raise RuntimeError(
                f"{MAX_OPEN} batches are open, {len(self._prefetched)} of them prefetched; use "
                "them in a backward or drop them first (their tickets, or the outputs of PyTorch "
                "modules), or call drop_prefetched()"
            )
        self._graph_pins = pins

    # ---- refusals --------------------------------------------------------------------------

    def refuse_admission(self, indices: Any, on: Stream) -> None:
        """Raise RuntimeError if a capture would have to take over a batch from outside."""
        captures.refuse_batch(indices, unpooled_of_several=False)
        captures.refuse_unsent(self.calls)
        self._close_pending(on)
        implicit = self._implicit
        if implicit is not None and implicit.open and batch_of(implicit).capture == 0:
            raise RuntimeError(
                "the latest forward waits for its backward, which cannot be captured "
                f"{captures.GRAPH} without that forward: call backward before the capture"
            )
        if any(batch_of(ticket).capture == 0 for ticket in self._prefetched):
            raise RuntimeError(
                f"a prefetch from outside the capture cannot be taken over "
                f"{captures.GRAPH}: use it before, or call drop_prefetched()"
            )

    def refuse_backward(self, tickets: list[Ticket | None], outs: list[Any], on: Stream) -> None:
        """Raise RuntimeError for a backward that cannot be captured."""
        captures.refuse_unsent(self.calls)
        for used, out in zip(self.tickets_for_backward(tickets, on), outs, strict=True):
            if batch_of(used).capture == 0:
                raise RuntimeError(
                    f"a backward cannot be captured {captures.GRAPH} without its forward, which "
                    "was called outside the capture"
                )
            if used.weighted:
                captures.refuse_result("backward of a forward with per_sample_weights", out)
