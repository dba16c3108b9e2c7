"""What happens to a checked batch: admission, forward, fused backward, tickets.

The collection checks what callers pass; this class keeps the invariants: the write step grows with
every call that may write, rows of open tickets are pinned, a slot is unpinned exactly once.
"""

import threading
import weakref
from typing import Any

import numpy as np

from mpembed import _inputs
from mpembed._core import Batch, Lookups
from mpembed._storage import Storage
from mpembed.optim import Optimizer
from mpembed.tickets import MAX_OPEN, Ticket

MAX_STEP = 1 << 40


class Engine:
    """The moving parts of a collection. Callers hold `lock`."""

    def __init__(self, storage: Storage, optimizer: Optimizer, *, drop: bool) -> None:
        self.storage = storage
        self.optimizer = optimizer
        self.drop = drop
        self.step = 0
        self.lock = threading.RLock()
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

    def next_step(self) -> int:
        """Count a call that may write."""
        if self.step + 1 >= MAX_STEP:
            raise OverflowError(f"the write step may not exceed {MAX_STEP - 1}")
        self.step += 1
        return self.step

    # ---- forward ---------------------------------------------------------------------------

    def prefetch(self, batch: Batch) -> Ticket:
        """Admit a batch and keep its ticket for the forward to come."""
        self._room_for_ticket(0)
        lookups = self._prepare(batch)
        self.next_step()
        ticket = self._admit(batch, lookups)
        self._prefetched.append(ticket)
        return ticket

    def evaluate(self, batch: Batch, views: Any) -> None:
        """Forward without any change of state."""
        for group, lookups in zip(self.groups, self._prepare(batch), strict=True):
            slots = group.locate(lookups) if group.cached else None
            group.lookup(lookups, slots, views)

    def train_forward(self, batch: Batch, views: Any, *, explicit: bool) -> Ticket:
        """Forward of a training batch; an implicit ticket lasts until the next such call."""
        lookups = self._prepare(batch)
        ready = next((t for t in self._prefetched if t.same_batch(lookups)), None)
        if ready is None:
            self._room_for_ticket(1 if self._implicit is not None and self._implicit.open else 0)
        self.next_step()
        if self._implicit is not None:
            self.close(self._implicit)
            self._implicit = None
        if ready is None:
            ready = self._admit(batch, lookups)
        else:
            self._prefetched.remove(ready)
            ready.take_weights(lookups, weighted=batch.weights is not None)
        for group, part in ready.parts(self.groups):
            slots = group.scatter(part, group.refresh(part)) if group.cached else None
            group.lookup(part, slots, views)
            if not group.cached:
                group.count(part, unique=False, accesses=True, dropped=True)
        self._latest = ready
        self._implicit = None if explicit else ready
        return ready

    def _prepare(self, batch: Batch) -> list[Lookups]:
        return [group.prepare(batch, self.drop) for group in self.groups]

    def _admit(self, batch: Batch, lookups: list[Lookups]) -> Ticket:
        weighted = batch.weights is not None
        ticket = Ticket(self, lookups, batch.batch_size, batch.num_indices, weighted=weighted)
        self._open.add(ticket)
        try:
            for group, part in ticket.parts(self.groups):
                if group.cached:
                    group.admit(part, self.step)
                    group.count(part, unique=False, accesses=False, dropped=True)
        except BaseException:
            self.close(ticket)
            raise
        return ticket

    # ---- backward --------------------------------------------------------------------------

    def backward(self, used: Ticket, views: Any) -> tuple[Any, list[tuple[int, str, int]]]:
        """Update the rows of a ticket; return the weight gradient and the skipped rows."""
        self.next_step()
        prepared = [self._slots_for_update(g, p) for g, p in used.parts(self.groups)]
        weight_grad = None
        if used.weighted:
            weight_grad = np.empty(used.num_indices, np.float32)
            for (group, part), slots in zip(used.parts(self.groups), prepared, strict=True):
                each = group.scatter(part, slots) if slots is not None else None
                group.weight_grad(part, each, views, weight_grad)
        settings = self.optimizer.kernel_settings()
        skipped = []
        for (group, part), slots in zip(used.parts(self.groups), prepared, strict=True):
            found = group.update(part, slots, views, settings, self.step)
            if found[0]:
                skipped.append(found)
        self.close(used)
        return weight_grad, skipped

    @staticmethod
    def _slots_for_update(group: Any, part: Lookups) -> Any:
        if group.cached:
            return group.refresh(part)
        part.dedup(group)
        group.count(part, unique=True, accesses=False, dropped=False)
        return None

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
        for stored, part in zip(self.storage.groups, ticket.lookups, strict=True):
            for table, segment in zip(stored.table_ids, part.segments, strict=True):
                counts[table] = segment[2]
        return _inputs.unpooled_shapes(self.storage.configs, ticket.batch_size, counts)

    # ---- tickets ---------------------------------------------------------------------------

    def ticket_for_backward(self, ticket: Ticket | None) -> Ticket:
        """Return the open ticket of a forward, by default the latest one's."""
        used = self._latest if ticket is None else ticket
        if used is None:
            raise RuntimeError("backward without a training forward")
        if not isinstance(used, Ticket):
            raise TypeError(f"ticket must be a Ticket, got {type(used).__name__}")
        if not used.belongs_to(self):
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
            ticket.open = False
            for group, part in ticket.parts(self.groups):
                if group.cached:
                    group.release(part)
            ticket.lookups = []
            self._open.discard(ticket)
            if ticket in self._prefetched:
                self._prefetched.remove(ticket)

    def _room_for_ticket(self, freed: int) -> None:
        if len(self._open) - freed >= MAX_OPEN:
            raise RuntimeError(f"{MAX_OPEN} batches are open; use or drop their tickets first")
