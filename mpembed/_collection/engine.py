"""What happens to a checked batch: admission, forward, fused backward, tickets.

The collection checks what callers pass; this class keeps the invariants: the write step grows with
every call that may write, rows of open tickets are pinned, a slot is unpinned exactly once.
"""

from collections.abc import Iterable
from typing import Any

from mpembed._arguments import batches, captures, outputs
from mpembed._bindings.contract import MAX_STEP
from mpembed._bindings.device import CallOrder, Stream
from mpembed._bindings.kernels import Batch, OpenedBatch, Step
from mpembed._bindings.view import View
from mpembed._collection.lock import ForkAwareLock
from mpembed._collection.open_batch import OpenBatch
from mpembed._collection.open_batches import OpenBatches
from mpembed._collection.rates import Rates
from mpembed._collection.storage import Storage
from mpembed.errors import NonFiniteUpdateError
from mpembed.tickets import Ticket, batch_of


class Engine(OpenBatches):
    """The moving parts of a collection. Callers are inside one of `calls` and pass its stream.

    The step itself is the library's (``mpembed/step.h``): it allocates and computes all that can
    fail before it takes the write step or changes anything, and the header says what is left where
    a kernel finds no memory after that. This class decides which batches are open, and turns what
    went wrong into exceptions.

    A device's kernels find what is wrong with a batch after the call has returned. They empty such
    a batch before it can change anything but the step and the cache's clock, and keep the error
    for `check`.
    """

    def __init__(self, storage: Storage, *, drop: bool, raise_nonfinite: bool) -> None:
        self.storage = storage
        self.raise_nonfinite = raise_nonfinite
        self.steps, self.rules = storage.steps, storage.rules
        self.device_errors = storage.device_errors
        self.device = storage.device
        self._refuses_later = not self.device.raises_at_once  # a batch, once its call has returned
        groups = [group.kernels for group in storage.groups]
        super().__init__(CallOrder(storage.device, ForkAwareLock()), groups)
        names = [config.name for config in storage.configs]
        self.step = Step(groups, names, storage.steps, storage.rules, storage.device_errors, drop)
        self.width = outputs.pooled_width(storage.configs)
        self._pending: list[tuple[int, int, int]] = []  # skipped updates, not yet reported
        self._rates = Rates(storage, self.calls)

    def _check_step_limit(self) -> None:
        if self.steps.taken >= MAX_STEP:
            raise OverflowError(f"the write step may not exceed {MAX_STEP}")

    # ---- forward ---------------------------------------------------------------------------

    def open(self, batch: Batch, on: Stream) -> OpenedBatch:
        """Open a batch, which changes no state; IndexError on the CPU, `check` on a device."""
        opened = self.step.open(batch, on)
        if isinstance(opened, tuple):
            raise self._index_error(opened, batch)
        return opened

    def prefetch(self, batch: Batch, on: Stream) -> Ticket:
        """Admit a batch and keep its ticket for the forward to come."""
        self._check_step_limit()
        self._close_pending(on)
        self._check_open_limit(0, on)
        ticket = self._ticket(batch, self.open(batch, on))
        batch_of(ticket).arguments = batch.index_arguments()
        batch_of(ticket).opened.admit(on)
        self._remember(ticket)
        self._prefetched.append(ticket)
        return ticket

    def evaluate(self, opened: OpenedBatch, views: Any, on: Stream) -> None:
        """Forward without any change of state."""
        self._clear_unpooled(views, on)
        opened.evaluate(views, on)
        opened.close(on)

    def train_forward(
        self, batch: Batch, opened: OpenedBatch, views: Any, on: Stream, *, explicit: bool
    ) -> Ticket:
        """Forward of a training batch; an implicit ticket lasts until the next such call."""
        self._check_step_limit()
        self._close_pending(on)
        known = next((t for t in self._prefetched if self._same_batch(t, batch, opened)), None)
        implicit = self._implicit if self._implicit is not None and self._implicit.open else None
        if known is None:
            self._check_open_limit(0 if implicit is None else 1, on)
        self._clear_unpooled(views, on)
        ticket = self._ticket(batch, opened) if known is None else known
        if known is not None:
            batch_of(known).opened.take_weights(opened)
            opened.close(on)
        replaced = None if implicit is None else batch_of(implicit).opened
        try:
            batch_of(ticket).opened.forward(replaced, views, on)
        finally:  # without memory, the batches may be closed all the same
            self._forget_closed([one for one in (implicit, known) if one is not None])
        if known is None:
            self._remember(ticket)
        else:
            self._prefetched.remove(known)
        self._latest = ticket
        self._implicit = None if explicit else ticket
        return ticket

    def _ticket(self, batch: Batch, opened: OpenedBatch) -> Ticket:
        return Ticket(self, OpenBatch(opened, batch.batch_size, batch.num_indices))

    def _remember(self, ticket: Ticket) -> None:
        """Add an admitted batch to those that are open."""
        self._open.add(ticket)
        if batch_of(ticket).capture != 0:
            self._captured.add(ticket)

    def _clear_unpooled(self, views: Any, on: Stream) -> None:
        """Set outputs to zero that kernels do not write where the batch is refused later."""
        if self.width is None and self._refuses_later:
            self._clear(views.values(), on)

    def _clear(self, results: Iterable[View], on: Stream) -> None:
        """Set results to zero that kernels do not write where the batch is refused later."""
        for view in results:
            on.clear(view.address, 4 * view.size)

    def _same_batch(self, ticket: Ticket, batch: Batch, opened: OpenedBatch) -> bool:
        """Whether a batch is the one of a prefetch.

        On a device it is if it lies in the same memory: its contents are not read back.
        """
        if self.device.synchronous:
            return batch_of(ticket).opened.same_rows(opened)
        return batch_of(ticket).same_arrays(batch.index_arguments())

    def _index_error(
        self, found: tuple[int, int, int, int], batch: Batch | None = None
    ) -> IndexError:
        table = self.storage.configs[found[0]]
        joined = batch is not None and batch.sources is not None
        argument = "its indices" if joined else "indices"
        first = batch.first_index(found[0]) if joined and batch is not None else 0
        return batches.index_error(table.name, table.num_embeddings, found, argument, first)

    # ---- backward --------------------------------------------------------------------------

    def backward(
        self, used: list[Ticket], views: list[Any], weight_grads: list[Any], on: Stream
    ) -> None:
        """Update the rows of tickets once; write the gradient of the weights of those with any."""
        self._check_step_limit()
        self.rules.send(on)
        opened = [batch_of(ticket).opened for ticket in used]
        try:
            self.step.backward(opened, views, weight_grads, on)
        finally:  # without memory, the batches may be closed all the same
            self._forget_closed(used)

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
        self.step.flush(on)

    def write_rows(self, group: Any, keys: Any, values: Any, on: Stream) -> None:
        """Set rows of one group."""
        self._check_step_limit()
        self.step.write_rows(group, keys, values, on)

    # ---- shapes ----------------------------------------------------------------------------

    def batch_shapes(self, batch: Batch, opened: OpenedBatch, on: Stream) -> Any:
        """Return the shape of a batch's output, or each table's where one is unpooled.

        Where a table of several is unpooled, a device is waited for.
        """
        if self.width is not None:
            return batch.batch_size, self.width
        counts = batch.table_counts(opened, on)
        return outputs.unpooled_shapes(self.storage.configs, batch.batch_size, counts)

    # ---- seed ------------------------------------------------------------------------------

    def reseed(self, seed: int) -> None:
        """Draw all random bits from this seed from the next call on."""
        self.step.reseed(seed)

    # ---- graphs ----------------------------------------------------------------------------

    def refuse_forward(self, indices: Any, out: Any, on: Stream, *, training: bool) -> None:
        """Raise RuntimeError for a forward that cannot be captured."""
        several = self.width is None and len(self.storage.configs) > 1
        captures.refuse_batch(indices, unpooled_of_several=several)
        captures.refuse_result("forward", out)
        if training:
            self.refuse_admission(indices, on)
