"""What happens to a checked batch: admission, forward, fused backward, tickets.

The collection checks what callers pass; this class keeps the invariants: the write step grows with
every call that may write, rows of open tickets are pinned, a slot is unpinned exactly once.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from mpembed._arguments import batches, captures, outputs
from mpembed._bindings.contract import MAX_STEP
from mpembed._bindings.device import CallOrder, Stream
from mpembed._bindings.kernels import Batch, OpenedBatch, Step
from mpembed._bindings.view import View
from mpembed._collection.batch_rows import BatchRows, batch_rows, together
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
        names = [config.name for config in storage.configs]
        calls = CallOrder(storage.device)
        storage.used_by(calls)
        step = Step(groups, names, storage.steps, storage.rules, storage.device_errors, drop, calls)
        super().__init__(calls, step)
        self.width = outputs.pooled_width(storage.configs)
        self.unpooled = names if self.width is None else None  # of a call's dicts: all tables
        self._unpooled_of_several = self.width is None and len(names) > 1
        self._rates = Rates(storage, self.calls)

    def _check_step_limit(self) -> None:
        if self.steps.taken >= MAX_STEP:
            raise OverflowError(f"the write step may not exceed {MAX_STEP}")

    def next_step(self, on: Stream) -> int:
        """Return the write step of a call that writes, which the caller then sets."""
        self._check_step_limit()
        return int(self.steps.read(on)) + 1

    # ---- forward ---------------------------------------------------------------------------

    def open(self, batch: Batch, on: Stream) -> OpenedBatch:
        """Open a batch, which changes no state; IndexError on the CPU, `check` on a device."""
        opened = self.step.open(batch, on)
        if isinstance(opened, tuple):
            raise self._index_error(opened, batch)
        return opened

    def open_forward(self, batch: Batch, on: Stream, *, training: bool) -> OpenedBatch:
        """Open the batch of a forward. On a device it may be the open one of its prefetch.

        That one has no weights: a batch with weights is opened again, to read them. So is one of
        several tables of which one is unpooled, whose lookups are counted: where it is refused, the
        prefetch has emptied it.
        """
        takes = training and self._refuses_later and batch.weights is None
        if takes and self._prefetches and not self._unpooled_of_several:
            self._close_pending(on)
            known = self._prefetch_of(batch, None)
            if known is not None:
                return batch_of(known).opened
        return self.open(batch, on)

    def prefetch(self, batch: Batch, on: Stream) -> Ticket:
        """Admit a batch and keep its ticket for the forward to come."""
        self._check_step_limit()
        self._close_pending(on)
        self._check_open_limit(0, on)
        made = self.open(batch, on)
        self._make_room(batch, on)
        ticket = self._ticket(batch, made)
        opened = batch_of(ticket).opened
        opened.arguments = batch.index_arguments()  # their memory is not reused meanwhile
        self._prefetches = self._waiting()
        opened.admit(on, self._prefetches, ticket)
        return ticket

    def evaluate(self, opened: OpenedBatch, views: Any, on: Stream) -> None:
        """Forward without any change of state."""
        self._clear_unpooled(views, on)
        opened.evaluate(views, on)
        opened.close(on)

    def train_forward(
        self,
        batch: Batch,
        opened: OpenedBatch,
        views: Any,
        shapes: Any,
        on: Stream,
        *,
        explicit: bool,
    ) -> Ticket:
        """Forward of a training batch; an implicit ticket lasts until the next such call."""
        self._check_step_limit()
        self._close_pending(on)
        known = self._prefetch_of(batch, opened)
        implicit = self._latest.implicit
        if known is None:
            self._check_open_limit(int(implicit is not None and implicit.is_open), on)
        rows = self._make_room(batch, on)
        self._clear_unpooled(views, on)
        ticket = self._ticket(batch, opened) if known is None else known
        kept = batch_of(ticket)
        kept.shapes, kept.rows = shapes, rows
        kept.named_counts = batches.weight_counts(self.storage.configs, batch)
        if kept.opened is not opened:
            kept.opened.take_weights(opened)
            opened.close(on)
        kept.opened.forward(views, on, self._latest, ticket, explicit)
        if self._prefetches:
            self._prefetches = self._waiting()
        if self._abandoned:  # the latest ticket before, which nobody else held
            self._close_pending(on)
        return ticket

    def _make_room(self, batch: Batch, on: Stream) -> BatchRows | None:
        """Wait where admitting a batch could fill what a save in the background keeps.

        Returns
        -------
        BatchRows or None
            The batch's rows, where its backward will have to know them.
        """
        snapshot = self.storage.snapshot
        if snapshot is None:
            return None
        # What the backward writes comes on top of what the admission does.
        fits = snapshot.has_room(2 * batch.num_indices)
        rows = None if fits else batch_rows(self.storage.configs, batch, on)
        if self._pins:  # without a cache a forward writes no row
            self.storage.make_room(batch.num_indices, lambda: rows)
        return rows

    def _prefetch_of(self, batch: Batch, opened: OpenedBatch | None) -> Ticket | None:
        """Return the ticket of a batch's prefetch, or None."""
        if not self._prefetches:
            return None
        return next((t for t in self._waiting() if self._same_batch(t, batch, opened)), None)

    def _ticket(self, batch: Batch, opened: OpenedBatch) -> Ticket:
        return Ticket(self, OpenBatch(opened, batch.batch_size, batch.num_indices))

    def _clear_unpooled(self, views: Any, on: Stream) -> None:
        """Set outputs to zero that kernels do not write where the batch is refused later."""
        if self.width is None and self._refuses_later:
            self._clear(views.values(), on)

    def _clear(self, results: Iterable[View], on: Stream) -> None:
        """Set results to zero that kernels do not write where the batch is refused later."""
        for view in results:
            on.clear(view.address, view.nbytes)

    def _same_batch(self, ticket: Ticket, batch: Batch, opened: OpenedBatch | None) -> bool:
        """Whether a batch is the one of a prefetch.

        On a device it is if it lies in the same memory: its contents are not read back.
        """
        if opened is not None and self.device.synchronous:
            return batch_of(ticket).opened.same_rows(opened)
        return batch_of(ticket).same_arrays(batch.index_arguments())

    def _index_error(
        self, found: tuple[int, int, int, int], batch: Batch | None = None
    ) -> IndexError:
        table = self.storage.configs[found[0]]
        joined = batch is not None and batch.sources is not None
        argument = "its indices" if joined else "indices"
        first = batch.first_index(found[0]) if joined and batch is not None else 0
        return batches.index_error(table.name, table.num_embeddings, found, argument, first, batch)

    # ---- backward --------------------------------------------------------------------------

    def backward(
        self, used: list[Ticket], views: list[Any], weight_grads: list[Any], on: Stream
    ) -> None:
        """Update the rows of tickets once; write the gradient of the weights of those with any."""
        self._check_step_limit()
        own = [batch_of(ticket) for ticket in used]
        if self.storage.snapshot is not None:
            self.storage.make_room(sum(one.num_indices for one in own), partial(_rows_of, own))
        self.rules.send(on)
        self.step.backward([one.opened for one in own], views, weight_grads, on)
        for one in own:
            one.rows = None

    # ---- what kernels found wrong ------------------------------------------------------------

    def raise_found(self, on: Stream, weight_grad: Any = None) -> None:
        """Raise what kernels found wrong; a device is waited for.

        `weight_grad` goes with the error of a backward that has computed it.
        """
        self._close_pending(on)
        batch = self.device_errors.collect(on)
        if batch is not None:  # updates wait for the next check
            raised = batch if isinstance(batch, Exception) else self._index_error(batch)
            self.device_errors.raise_batch(raised)
        updates = self.device_errors.updates
        if updates and self.raise_nonfinite:
            self.device_errors.raise_updates(self._update_error(updates, weight_grad))
        if updates:
            self.device_errors.forget_updates()

    def _update_error(
        self, updates: list[tuple[int, int, int]], weight_grad: Any
    ) -> NonFiniteUpdateError:
        """Return the error of updates that were left out."""
        rows, number = sum(count for _, count, _ in updates), min(group for group, _, _ in updates)
        name, row = self.groups[number].row_of(min(k for g, _, k in updates if g == number))
        return NonFiniteUpdateError(
            f"the update of {rows} row(s) would not be finite, first row {row} of table "
            f"{name!r}; they keep their values, all others are updated",
            rows,
            weight_grad,
        )

    # ---- single writes ---------------------------------------------------------------------

    def flush(self, on: Stream) -> None:
        """Write every dirty slot of every group back."""
        self._check_step_limit()
        self.storage.make_room(self.storage.num_slots)
        self.step.flush(on)

    def write_rows(self, group: Any, keys: Any, values: Any, on: Stream) -> None:
        """Set rows of one group."""
        self._check_step_limit()
        self.storage.make_room(values.shape[0])
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
        captures.refuse_batch(indices, unpooled_of_several=self._unpooled_of_several)
        captures.refuse_result("forward", out)
        if training:
            self.refuse_admission(indices, on)


def _rows_of(batches: list[OpenBatch]) -> BatchRows | None:
    """Return what batches ask for together, None where it is not known of one."""
    known = [one.rows for one in batches if one.rows is not None]
    return together(known) if len(known) == len(batches) else None
