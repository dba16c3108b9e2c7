"""What happens to a checked batch: admission, forward, fused backward, tickets.

The collection checks what callers pass; this class keeps the invariants: the write step grows with
every call that may write, rows of open tickets are pinned, a slot is unpinned exactly once.
"""

import weakref
from typing import Any

import numpy as np

from mpembed import _inputs
from mpembed._core import Batch, Lookups, Work
from mpembed._lock import ForkAwareLock
from mpembed._storage import Storage
from mpembed.optim import Optimizer
from mpembed.tickets import MAX_OPEN, Ticket

MAX_STEP = 1 << 40


class Engine:
    """The moving parts of a collection. Callers hold `lock`.

    Every call first checks, allocates and computes all that can fail, for all groups; only then it
    takes its step and changes anything. What can still fail is a kernel that finds no memory for
    its own workspace. It does so before it changes anything itself, but an earlier group's kernel
    has run by then; what that leaves is said where it can happen.
    """

    def __init__(self, storage: Storage, optimizer: Optimizer, *, drop: bool) -> None:
        self.storage = storage
        self.optimizer = optimizer
        self.drop = drop
        self.step = 0
        self.lock = ForkAwareLock()
        self.groups = [group.kernels for group in storage.groups]
        self.width = _inputs.pooled_width(storage.configs)
        self._open: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self._prefetched: list[Ticket] = []
        self._implicit: Ticket | None = None
        self._latest: Ticket | None = None

    @property
    def workspace(self) -> int:
        """Bytes held by open batches."""
        return sum(ticket.nbytes for ticket in self._open)

    def _next_step(self) -> int:
        """Return the step of a call that may write; setting `step` to it takes it."""
        if self.step + 1 >= MAX_STEP:
            raise OverflowError(f"the write step may not exceed {MAX_STEP - 1}")
        return self.step + 1

    # ---- forward ---------------------------------------------------------------------------

    def prefetch(self, batch: Batch) -> Ticket:
        """Admit a batch and keep its ticket for the forward to come."""
        step = self._next_step()
        self._room_for_ticket(0)
        ticket = self._reserve(batch, self._prepare(batch))
        self.step = step
        self._admit(ticket)
        self._prefetched.append(ticket)
        return ticket

    def evaluate(self, batch: Batch, views: Any) -> None:
        """Forward without any change of state."""
        for group, part in zip(self.groups, self._prepare(batch), strict=True):
            work = Work(group, part, views, True)
            if group.cached:
                group.locate(part, work)
            group.lookup(part, work)

    def train_forward(self, batch: Batch, views: Any, *, explicit: bool) -> Ticket:
        """Forward of a training batch; an implicit ticket lasts until the next such call."""
        step = self._next_step()
        lookups = self._prepare(batch)
        known = next((t for t in self._prefetched if t._same_batch(lookups)), None)
        if known is None:
            self._room_for_ticket(1 if self._implicit is not None and self._implicit.open else 0)
        ticket = self._reserve(batch, lookups) if known is None else known
        parts = ticket._parts(self.groups)
        work = [Work(group, part, views, True) for group, part in parts]
        self.step = step
        if self._implicit is not None:
            self.close(self._implicit)
            self._implicit = None
        if known is None:
            self._admit(ticket)
        else:
            self._prefetched.remove(known)
            known._take_weights(lookups, weighted=batch.weights is not None)
        try:
            for (group, part), space in zip(parts, work, strict=True):
                if group.cached:
                    group.refresh(part, space)
                    group.scatter(part, space)
                group.lookup(part, space)
        except BaseException:  # no memory: the batch is admitted and counted, and open no more
            self.close(ticket)
            raise
        for group, part in parts:
            if not group.cached:
                group.count(part, unique=False, accesses=True, dropped=True)
        self._latest = ticket
        self._implicit = None if explicit else ticket
        return ticket

    def _prepare(self, batch: Batch) -> list[Lookups]:
        return _inputs.group_lookups(self.groups, batch, drop=self.drop)

    def _reserve(self, batch: Batch, lookups: list[Lookups]) -> Ticket:
        """Return the ticket of a batch to admit, with all that its admission needs."""
        for group, part in zip(self.groups, lookups, strict=True):
            part.reserve(group)
        weighted = batch.weights is not None
        return Ticket(self, lookups, batch.batch_size, batch.num_indices, weighted=weighted)

    def _admit(self, ticket: Ticket) -> None:
        self._open.add(ticket)
        try:
            for group, part in ticket._parts(self.groups):
                if group.cached:
                    group.admit(part, self.step)
                    group.count(part, unique=False, accesses=False, dropped=True)
        except BaseException:  # no memory: earlier groups keep the rows they admitted, unpinned
            self.close(ticket)
            raise

    # ---- backward --------------------------------------------------------------------------

    def backward(self, used: Ticket, views: Any) -> tuple[Any, list[tuple[int, str, int]]]:
        """Update the rows of a ticket; return the weight gradient and the skipped rows."""
        step = self._next_step()
        settings = self.optimizer.kernel_settings()
        parts, work = used._parts(self.groups), []
        weight_grad = np.empty(used.num_indices, np.float32) if used.weighted else None
        for group, part in parts:
            part.dedup(group)
            work.append(Work(group, part, views, used.weighted))
        for (group, part), space in zip(parts, work, strict=True):
            if group.cached:
                group.refresh(part, space)
            if weight_grad is not None:
                if group.cached:
                    group.scatter(part, space)
                group.weight_grad(part, space, weight_grad)
        skipped = []
        try:
            for (group, part), space in zip(parts, work, strict=True):
                found = group.update(part, space, settings, step)
                self.step = step
                if not group.cached:
                    group.count(part, unique=True, accesses=False, dropped=False)
                if found[0]:
                    skipped.append(found)
        except BaseException:
            # No memory. In the first group nothing has changed. Later, the groups before it are
            # updated; the batch is closed, so that no second try updates them twice.
            if self.step == step:
                self.close(used)
            raise
        self.close(used)
        return weight_grad, skipped

    # ---- single writes ---------------------------------------------------------------------

    def flush(self) -> None:
        """Write every dirty slot of every group back."""
        step = self._next_step()
        for group in self.groups:
            if group.cached:
                group.flush(step)  # no memory: the groups before are flushed, this step is theirs
            self.step = step

    def write_rows(self, group: Any, keys: Any, values: Any) -> None:
        """Set rows of one group."""
        step = self._next_step()
        group.write_rows(keys, values, step)
        self.step = step

    # ---- shapes ----------------------------------------------------------------------------

    def batch_shapes(self, batch: Batch) -> Any:
        """Return the shape of a batch's output, or each table's where one is unpooled."""
        if self.width is not None:
            return batch.batch_size, self.width
        counts = batch.table_counts()
        return _inputs.unpooled_shapes(self.storage.configs, batch.batch_size, counts)

    def ticket_shapes(self, ticket: Ticket) -> Any:
        """Return the same for a ticket's batch."""
        if self.width is not None:
            return ticket.batch_size, self.width
        counts = [0] * len(self.storage.configs)
        for stored, part in ticket._parts(self.storage.groups):
            for table, count in zip(stored.table_ids, part.table_counts(), strict=True):
                counts[table] = count
        return _inputs.unpooled_shapes(self.storage.configs, ticket.batch_size, counts)

    # ---- tickets ---------------------------------------------------------------------------

    def ticket_for_backward(self, ticket: Ticket | None) -> Ticket:
        """Return the open ticket of a forward, by default the latest one's."""
        used = self._latest if ticket is None else ticket
        if used is None:
            raise RuntimeError(
                "backward without a training forward (training=False leaves nothing to train)"
            )
        if not isinstance(used, Ticket):
            raise TypeError(f"ticket must be a Ticket, got {type(used).__name__}")
        if not used._belongs_to(self):
            raise ValueError("the ticket belongs to another collection")
        if not used.open:
            raise RuntimeError("the forward of this backward was used already or dropped")
        if used in self._prefetched:
            raise RuntimeError("the ticket is a prefetch's: call forward first")
        return used

    def close(self, ticket: Ticket) -> None:
        """Unpin a ticket's rows and forget it; closing twice is harmless."""
        with self.lock:
            if not ticket.open:
                return
            for group, part in zip(self.groups, ticket._close(), strict=True):
                if group.cached:
                    group.release(part)
            self._open.discard(ticket)
            if ticket in self._prefetched:
                self._prefetched.remove(ticket)

    def drop_prefetched(self) -> int:
        """Drop all prefetches that no forward has taken over; return how many."""
        waiting = list(self._prefetched)
        for ticket in waiting:
            self.close(ticket)
        return len(waiting)

    def _room_for_ticket(self, freed: int) -> None:
        if len(self._open) - freed >= MAX_OPEN:
            raise RuntimeError(
                f"{MAX_OPEN} batches are open, {len(self._prefetched)} of them prefetched; use or "
                "drop their tickets first, or call drop_prefetched()"
            )
