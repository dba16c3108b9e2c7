"""What happens to a checked batch: admission, forward, fused backward, tickets.

The collection checks what callers pass; this class keeps the invariants: the write step grows with
every call that may write, rows of open tickets are pinned, a slot is unpinned exactly once.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from mpembed import optim
from mpembed._arguments import batches, captures, outputs
from mpembed._bindings import kernels
from mpembed._bindings.contract import MAX_STEP
from mpembed._bindings.device import CallOrder, Stream
from mpembed._bindings.kernels import Batch, CallWorkspace, GroupBatch
from mpembed._bindings.view import View
from mpembed._collection.lock import ForkAwareLock
from mpembed._collection.open_batch import OpenBatch
from mpembed._collection.open_batches import OpenBatches
from mpembed._collection.storage import Storage
from mpembed.errors import NonFiniteUpdateError
from mpembed.optim import Optimizer
from mpembed.tickets import Ticket, batch_of


class Engine(OpenBatches):
    """The moving parts of a collection. Callers are inside one of `calls` and pass its stream.

    Every call first checks, allocates and computes all that can fail, for all groups; only then it
    takes its step and changes anything. What can still fail is a kernel that finds no memory for
    its own workspace. It does so before it changes anything itself, but an earlier group's kernel
    has run by then; what that leaves is said where it can happen.

    A device's kernels find what is wrong with a batch after the call has returned. They empty such
    a batch before it can change anything but the step and the cache's clock, and keep the error
    for `check`.
    """

    def __init__(
        self, storage: Storage, optimizer: Optimizer, *, drop: bool, raise_nonfinite: bool
    ) -> None:
        self.storage = storage
        self.optimizer = optimizer
        self.drop = drop
        self.raise_nonfinite = raise_nonfinite
        self.steps, self.device_errors = storage.steps, storage.device_errors
        self.device = storage.device
        self._refuses_later = not self.device.raises_at_once  # a batch, once its call has returned
        super().__init__(
            CallOrder(storage.device, ForkAwareLock()), [group.kernels for group in storage.groups]
        )
        self.width = outputs.pooled_width(storage.configs)
        self._pending: list[tuple[int, int, int]] = []  # skipped updates, not yet reported
        if not self.device.synchronous:  # graphs read the rate on the device
            optim.listen(optimizer, self)

    def _check_step_limit(self) -> None:
        if self.steps.taken >= MAX_STEP:
            raise OverflowError(f"the write step may not exceed {MAX_STEP}")

    # ---- forward ---------------------------------------------------------------------------

    def prefetch(self, batch: Batch, on: Stream) -> Ticket:
        """Admit a batch and keep its ticket for the forward to come."""
        self._check_step_limit()
        self._close_pending(on)
        self._check_open_limit(0, on)
        ticket = self._reserve(batch, self._prepare(batch, on), on)
        batch_of(ticket).arguments = batch.index_arguments()
        self.steps.advance(on)
        self._admit(ticket, on)
        self._prefetched.append(ticket)
        return ticket

    def evaluate(self, batch: Batch, views: Any, on: Stream) -> None:
        """Forward without any change of state."""
        shares = self._prepare(batch, on)
        if self.width is None and self._refuses_later:
            self._clear(views.values(), on)
        pairs = list(zip(self.groups, shares, strict=True))
        workspaces = [CallWorkspace(group, share, views, True, on) for group, share in pairs]
        for (group, share), workspace in zip(pairs, workspaces, strict=True):
            if group.cached:
                group.locate(share, workspace, on)
        kernels.lookup(self.groups, shares, workspaces, on)

    def train_forward(self, batch: Batch, views: Any, on: Stream, *, explicit: bool) -> Ticket:
        """Forward of a training batch; an implicit ticket lasts until the next such call."""
        self._check_step_limit()
        self._close_pending(on)
        shares = self._prepare(batch, on)
        known = next((t for t in self._prefetched if self._same_batch(t, batch, shares)), None)
        if known is None:
            implicit = self._implicit is not None and self._implicit.open
            self._check_open_limit(1 if implicit else 0, on)
        ticket = self._reserve(batch, shares, on) if known is None else known
        pairs = batch_of(ticket).pairs(self.groups)
        workspaces = [CallWorkspace(group, share, views, True, on) for group, share in pairs]
        if self.width is None and self._refuses_later:
            self._clear(views.values(), on)
        self.steps.advance(on)
        if self._implicit is not None:
            self.close(self._implicit)
            self._implicit = None
        if known is None:
            self._admit(ticket, on)
        else:
            self._prefetched.remove(known)
            batch_of(known).use_weights_of(shares, weighted=batch.weights is not None)
        try:
            for (group, share), workspace in zip(pairs, workspaces, strict=True):
                if group.cached:
                    group.refresh(share, workspace, on)
                    group.scatter(share, workspace, on)
            kernels.lookup(self.groups, [share for _, share in pairs], workspaces, on)
        except BaseException:  # no memory: the batch is admitted and counted, and open no more
            self.close(ticket)
            raise
        for group, share in pairs:
            if not group.cached:
                group.count(share, False, True, True, on)
        self._latest = ticket
        self._implicit = None if explicit else ticket
        return ticket

    def _clear(self, results: Iterable[View], on: Stream) -> None:
        """Set results to zero that kernels do not write where the batch is refused later."""
        for view in results:
            on.clear(view.address, 4 * view.size)

    def _same_batch(self, ticket: Ticket, batch: Batch, shares: list[GroupBatch]) -> bool:
        """Whether a batch is the one of a prefetch.

        On a device it is if it lies in the same memory: its contents are not read back.
        """
        if self.device.synchronous:
            return batch_of(ticket).same_rows(shares)
        return batch_of(ticket).same_arrays(batch.index_arguments())

    def _prepare(self, batch: Batch, on: Stream) -> list[GroupBatch]:
        """Return each group's share of a batch; IndexError on the CPU, `check` on a device."""
        shares = [group.prepare(batch, self.drop, on) for group in self.groups]
        if self._refuses_later:
            for group, share in zip(self.groups, shares, strict=True):
                group.discard(batch, share, self.device_errors, on)
            return shares
        found = batch.found(on)
        if found is not None:
            raise self._index_error(found, batch)
        return shares

    def _index_error(
        self, found: tuple[int, int, int, int], batch: Batch | None = None
    ) -> IndexError:
        table = self.storage.configs[found[0]]
        joined = batch is not None and batch.sources is not None
        argument = "its indices" if joined else "indices"
        first = batch.first_index(found[0]) if joined and batch is not None else 0
        return batches.index_error(table.name, table.num_embeddings, found, argument, first)

    def _reserve(self, batch: Batch, shares: list[GroupBatch], on: Stream) -> Ticket:
        """Return the ticket of a batch to admit, with all that its admission needs."""
        for group, share in zip(self.groups, shares, strict=True):
            share.reserve(group, on)
        weighted = batch.weights is not None
        sizes = batch.batch_size, batch.num_indices
        opened = OpenBatch(shares, *sizes, weighted=weighted, capture=on.capture)
        return Ticket(self, opened)

    def _admit(self, ticket: Ticket, on: Stream) -> None:
        self._open.add(ticket)
        if batch_of(ticket).capture != 0:
            self._captured.add(ticket)
        try:
            for group, share in batch_of(ticket).pairs(self.groups):
                if group.cached:
                    group.admit(share, on)
                    group.count(share, False, False, True, on)
        except BaseException:  # no memory: earlier groups keep the rows they admitted, unpinned
            self.close(ticket)
            raise

    # ---- backward --------------------------------------------------------------------------

    def backward(self, used: Ticket, views: Any, weight_grad: Any, on: Stream) -> None:
        """Update the rows of a ticket; write the gradient of the weights, if it had any."""
        self._check_step_limit()
        settings = self.optimizer.kernel_settings()
        pairs, workspaces = batch_of(used).pairs(self.groups), []
        if weight_grad is not None and self._refuses_later:
            self._clear([weight_grad], on)
        for group, share in pairs:
            share.dedup(group, on)
            workspaces.append(CallWorkspace(group, share, views, used.weighted, on))
        for (group, share), workspace in zip(pairs, workspaces, strict=True):
            if group.cached:
                group.refresh(share, workspace, on)
            if weight_grad is not None:
                if group.cached:
                    group.scatter(share, workspace, on)
                group.weight_grad(share, workspace, weight_grad, on)
        self.steps.advance(on)
        changed = False
        try:
            for (group, share), workspace in zip(pairs, workspaces, strict=True):
                group.update(share, workspace, settings, self.device_errors, on)
                changed = True
                if not group.cached:
                    group.count(share, True, False, False, on)
        except BaseException:
            # No memory. In the first group nothing has changed. Later, the groups before it are
            # updated; the batch is closed, so that no second try updates them twice.
            if changed:
                self.close(used)
            else:
                self.steps.undo()
            raise
        self.close(used)

    # ---- what kernels found wrong ------------------------------------------------------------

    def raise_found(self, on: Stream, weight_grad: Any = None) -> None:
        """Raise what kernels found wrong; a device is waited for.

        `weight_grad` goes with the error of a backward that has computed it.
        """
        found = self._skipped_updates(on)
        if found is not None and self.raise_nonfinite:
            rows, name, row = found
            raise NonFiniteUpdateError(
                f"the update of {rows} row(s) would not be finite, first row {row} of table "
                f"{name!r}; they keep their values, all others are updated",
                rows,
                weight_grad,
            )

    def _skipped_updates(self, on: Stream) -> tuple[int, str, int] | None:
        """Return and forget the updates left out: how many, the first one's table and row."""
        self._close_pending(on)
        batch, updates = self.device_errors.pop(on)
        updates, self._pending = self._pending + updates, []
        if batch is not None:
            self._pending = updates  # reported at the next check
            raise batch if isinstance(batch, Exception) else self._index_error(batch)
        if not updates:
            return None
        number = min(group for group, _, _ in updates)
        name, row = self.groups[number].row_of(min(k for g, _, k in updates if g == number))
        return sum(count for _, count, _ in updates), name, row

    # ---- single writes ---------------------------------------------------------------------

    def flush(self, on: Stream) -> None:
        """Write every dirty slot of every group back."""
        self._check_step_limit()
        self.steps.advance(on)
        flushed = False
        try:
            for group in self.groups:
                if group.cached:
                    group.flush(on)  # no memory: the groups before are flushed, the step is theirs
                flushed = True
        except BaseException:
            if not flushed:
                self.steps.undo()
            raise

    def write_rows(self, group: Any, keys: Any, values: Any, on: Stream) -> None:
        """Set rows of one group."""
        self._check_step_limit()
        self.steps.advance(on)
        try:
            group.write_rows(keys, values, on)
        except BaseException:
            self.steps.undo()
            raise

    # ---- shapes ----------------------------------------------------------------------------

    def batch_shapes(self, batch: Batch, on: Stream) -> Any:
        """Return the shape of a batch's output, or each table's where one is unpooled.

        Where a table of several is unpooled, a device is waited for.
        """
        if self.width is not None:
            return batch.batch_size, self.width
        counts = batch.table_counts(on)
        return outputs.unpooled_shapes(self.storage.configs, batch.batch_size, counts)

    # ---- seed ------------------------------------------------------------------------------

    def reseed(self, seed: int) -> None:
        """Draw all random bits from this seed from the next call on."""
        for group in self.groups:
            group.reseed(seed)

    # ---- graphs ----------------------------------------------------------------------------

    def refuse_forward(self, indices: Any, out: Any, on: Stream, *, training: bool) -> None:
        """Raise RuntimeError for a forward that cannot be captured."""
        several = self.width is None and len(self.storage.configs) > 1
        captures.refuse_batch(indices, unpooled_of_several=several)
        captures.refuse_result("forward", out)
        if training:
            self.refuse_admission(indices, on)

    def refuse_lr(self) -> None:
        """Raise RuntimeError where graphs of this collection cannot be given another rate now."""
        if self.calls.was_captured:
            with self.calls.on_last_stream(_refuse_lr):
                pass

    def set_lr(self, lr: float) -> None:
        """Let graphs use this learning rate from their next launch on.

        Before the first of them it is the next call that sends it: that need not come at all, and
        the stream of the one before may be gone.
        """
        self.calls.later = partial(self.steps.set_lr, lr)
        if self.calls.was_captured:
            with self.calls.on_last_stream(_refuse_lr):
                pass


def _refuse_lr(on: Stream) -> None:
    raise RuntimeError(f"the learning rate cannot be set {captures.GRAPH}")
