"""A collection's open batches, inside and outside of captures of CUDA graphs."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from mpembed._arguments import captures
from mpembed._bindings.device import CallOrder, Stream
from mpembed._bindings.kernels import LatestForward, OpenedBatch, Step
from mpembed.tickets import MAX_OPEN, Ticket, batch_of, owned_by


class OpenBatches:
    """Says which batches are open and closes them.

    The step knows which are. An exception may come between any two lines here (Ctrl-C), so nothing
    is counted twice: each line leaves what the next call can work with.
    """

    def __init__(self, calls: CallOrder, step: Step) -> None:
        self.calls, self.step, self.groups = calls, step, step.groups
        self._pins = any(group.cached for group in step.groups)
        self._latest = LatestForward()
        self._prefetches: list[Ticket] = []  # and some that are none any more
        self._abandoned: list[Ticket] = []  # closed as soon as no call or capture forbids it
        self._graph_pins = 0  # the most pins that one launch of a graph holds

    @property
    def num_open(self) -> int:
        """Batches that wait for their backward."""
        return self.step.num_open - len(self._abandoned)

    @property
    def num_prefetched(self) -> int:
        """Of these, prefetches that no forward has taken over."""
        return len(self._waiting())

    @property
    def num_forwards(self) -> int:
        """Of the open ones, those that had their forward."""
        return self.num_open - self.num_prefetched

    @property
    def workspace(self) -> int:
        """Bytes held by open batches."""
        return sum(opened.nbytes for opened in self.step.open_batches())

    def _waiting(self) -> list[Ticket]:
        """Return the prefetches that no forward has taken over."""
        return [ticket for ticket in self._prefetches if batch_of(ticket).opened.is_prefetch]

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
        used = self._latest.ticket if ticket is None else ticket
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
        if batch_of(used).opened.is_prefetch:
            raise RuntimeError("the ticket is a prefetch's: call forward first")
        return used

    def close(self, ticket: Ticket) -> None:
        """Unpin a ticket's rows; closing twice is harmless."""
        opened = [batch_of(ticket).opened]
        refuse = partial(_refuse_to_close, opened)
        with self.calls.on_last_stream(refuse, changes=True) as on:
            self._close_pending(on)
            self._close_all(opened, on)

    def _close_all(self, batches: Sequence[OpenedBatch], on: Stream) -> None:
        """Close batches in one go; forget those of captures that are over."""
        still = [one for one in batches if one.is_open]
        if on.capture != 0:
            _refuse_to_close(still, on)
        self.step.close([one for one in still if one.capture == on.capture], on)
        self._discard_captured([one for one in still if one.is_open])

    def detach(self, ticket: Ticket) -> None:
        """Stop using this ticket in a backward that is given none."""
        if self._latest.ticket is ticket:
            self._latest.ticket = None

    def abandon(self, ticket: Ticket) -> None:
        """Close a ticket that nobody holds: now, or later if a call or a capture goes on.

        A finalizer comes here, at any point of any call: it neither waits nor changes what that
        call works on.
        """
        opened = [batch_of(ticket).opened]
        try:
            with self.calls.on_last_stream_if_free(partial(_refuse_to_close, opened)) as on:
                if on is not None:
                    self._close_pending(on)
                    self._close_all(opened, on)
        except RuntimeError:  # in a capture; or for good, in a child forked at a bad moment
            pass
        if ticket.open:
            self._abandoned.append(ticket)

    def _close_pending(self, on: Stream) -> None:
        """Forget what finished captures left open; close what waited for their end."""
        self.step.close_lost(on)
        lost: list[OpenedBatch] = []
        if self.step.num_captured > 0:
            batches = self.step.open_batches()
            lost = [one for one in batches if one.capture not in (0, on.capture)]
        while self._abandoned and on.capture == 0:
            self._close_all([batch_of(self._abandoned.pop()).opened], on)
        self._discard_captured([one for one in lost if one.is_open])

    def _discard_captured(self, batches: Sequence[OpenedBatch]) -> None:
        """Forget batches of a finished capture; their memory belongs to its graph."""
        if not batches:
            return
        for one in batches:
            one.forget()
        warnings.warn(
            "the capture of a CUDA graph ended before the backward of a forward or prefetch in it: "
            "do not launch that graph: each launch would pin rows that nothing unpins",
            RuntimeWarning,
            stacklevel=5,
        )

    def drop_all(self, on: Stream) -> None:
        """Drop every open batch."""
        self._close_all(self.step.open_batches(), on)

    def drop_prefetched(self, on: Stream) -> int:
        """Drop all prefetches that no forward has taken over; return how many."""
        self._close_pending(on)
        waiting = self._waiting()
        self._close_all([batch_of(ticket).opened for ticket in waiting], on)
        self._prefetches = []
        return len(waiting)

    def _check_open_limit(self, freed: int, on: Stream) -> None:
        captured = self.step.num_captured
        outside = self.step.num_open - captured
        pins = self._graph_pins
        if on.capture != 0:  # a launch holds them for as long as it runs
            pins = max(pins, captured + 1 - freed)
        else:
            outside += 1 - freed
        # Without a cache nothing is pinned, but forgotten prefetches would pile up.
        if (outside + pins if self._pins else len(self._prefetches) + 1) > MAX_OPEN:
            raise RuntimeError(
                f"{MAX_OPEN} batches are open, {self.num_prefetched} of them prefetched; use "
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
        implicit = self._latest.implicit
        if implicit is not None and implicit.is_open and implicit.capture == 0:
            raise RuntimeError(
                "the latest forward waits for its backward, which cannot be captured "
                f"{captures.GRAPH} without that forward: call backward before the capture"
            )
        if any(batch_of(ticket).capture == 0 for ticket in self._waiting()):
            raise RuntimeError(
                f"a prefetch from outside the capture cannot be taken over "
                f"{captures.GRAPH}: use it before, or call drop_prefetched()"
            )

    def refuse_backward(
        self,
        tickets: list[Ticket | None],
        outs: list[Any],
        on: Stream,
        *,
        weight_grad: bool = True,
    ) -> None:
        """Raise RuntimeError for a backward that cannot be captured."""
        captures.refuse_unsent(self.calls)
        for used, out in zip(self.tickets_for_backward(tickets, on), outs, strict=True):
            if batch_of(used).capture == 0:
                raise RuntimeError(
                    f"a backward cannot be captured {captures.GRAPH} without its forward, which "
                    "was called outside the capture"
                )
            if used.weighted and weight_grad:
                captures.refuse_result("backward of a forward with per_sample_weights", out)


def _refuse_to_close(batches: Sequence[OpenedBatch], on: Stream) -> None:
    """Raise RuntimeError where a capture would have to close a batch from outside."""
    if any(one.is_open and one.capture == 0 for one in batches):
        raise RuntimeError(
            f"a batch that was opened outside the capture cannot be closed {captures.GRAPH}"
        )
