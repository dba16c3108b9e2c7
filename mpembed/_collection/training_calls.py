"""Training: the calls of a collection that take a batch forward and its gradient back."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mpembed._arguments import arrays, batches, outputs
from mpembed._arguments.gradients import pairs_of, refuse_shared_results
from mpembed._arguments.scalars import boolean
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import refuse_moved, wait_until_computed
from mpembed._bindings.view import View
from mpembed._collection.base import CollectionBase
from mpembed._collection.open_batch import OpenBatch
from mpembed.tickets import Ticket, batch_of


class TrainingCalls(CollectionBase):
    """What trains a collection."""

    __slots__ = ()

    def prefetch(self, indices: Any, offsets: Any = None, *, stream: Any = None) -> Ticket:
        """Admit a coming batch's rows to the cache and pin them.

        Parameters
        ----------
        indices, offsets, stream
            As in `forward`.

        Returns
        -------
        Ticket
            The next training forward with the same indices and offsets takes it over. A device does
            not compare their values: there it is the forward with the same arrays, which must not
            change in the meantime. The collection keeps the ticket until then, or until
            ``ticket.drop()`` or `drop_prefetched`.
        """
        wait_until_computed(indices, offsets)
        refuse = partial(self._engine.refuse_admission, indices)
        with self._calls.on_stream(stream, refuse, changes=True) as on:
            return self._engine.prefetch(self._batch(indices, offsets, None, on), on)

    def _batch(
        self, indices: Any, offsets: Any, weights: Any, on: Stream, others: Sequence[View] = ()
    ) -> Any:
        return batches.make_batch(self._tables, indices, offsets, weights, on, others)

    def drop_prefetched(self) -> int:
        """Drop every prefetch that no forward has taken over; return how many there were."""
        with self._calls.on_last_stream(changes=True) as on:
            return self._engine.drop_prefetched(on)

    def forward(
        self,
        indices: Any,
        offsets: Any = None,
        per_sample_weights: Any = None,
        out: Any = None,
        stream: Any = None,
        *,
        training: bool = True,
        ticket: bool = False,
        output_dtype: str | None = None,
    ) -> Any:
        """Look up and pool a batch.

        Parameters
        ----------
        indices : int32 or int64 array (N,), or dict of table name -> (indices, offsets)
            Row numbers, table-major, from any DLPack exporter; never modified. In the host's
            memory they may be uint32, which are copied, or uint64. Other arrays are not copied;
            those of a dict are joined, which waits for a device.
        offsets : int32 or int64 array (T * B + 1,)
            Bag b of table t holds ``indices[offsets[t * B + b] : offsets[t * B + b + 1]]``. The
            last entry is N, as with PyTorch's ``include_last_offset=True``.
        per_sample_weights : float32 array (N,), or dict of table name -> array, optional
            One factor an index, a dict where `indices` is one; with mean pooling the weighted sum
            is divided by the number of indices. Its values are not checked: a NaN makes its bag
            NaN.
        out : float32, float16 or bfloat16 array (B, sum of D), optional
            Where to write the output; it shares no memory with the batch. A dict of arrays where
            some table has pooling "none".
        stream : None, int or object with ``__cuda_stream__``, optional
            Where a device does the work; must be None on the CPU.
        training : bool
            False changes no state at all.
        ticket : bool
            True returns ``(output, Ticket)``, to have several forwards open at once.
        output_dtype : str, optional
            ``"fp32"``, ``"fp16"`` or ``"bf16"``: the type of the output; by default that of `out`,
            else FP32. Rows are summed in FP32, and each value is rounded once, to the nearest; in
            FP16 one of 65520 and more becomes infinite. On the CPU ``"bf16"`` needs `out`.

        Returns
        -------
        numpy.ndarray (B, sum of D), of `output_dtype`
            `out` if it was given. If some table has pooling "none": a dict of table name ->
            (B, D), or (number of the table's indices, D) for the unpooled ones (a device is waited
            for, unless it is the only table). On a device: `Tensor`.

        Raises
        ------
        TypeError, ValueError, IndexError, BufferError
            Before anything changes.
        """
        training, ticket = boolean("training", training), boolean("ticket", ticket)
        dtype = outputs.output_dtype(output_dtype)
        if ticket and not training:
            raise ValueError("ticket=True needs training=True")
        wait_until_computed(indices, offsets, per_sample_weights)
        refuse = partial(self._engine.refuse_forward, indices, out, training=training)
        with self._calls.on_stream(stream, refuse, changes=training) as on:
            given = None if out is None else outputs.export(out, "out", self._engine.unpooled, on)
            batch = self._batch(indices, offsets, per_sample_weights, on, outputs.each_view(given))
            opened = self._engine.open_forward(batch, on, training=training)
            shapes = self._engine.batch_shapes(batch, opened, on)
            result, views = outputs.output_views(out, given, shapes, dtype, batch, on)
            if not training:
                self._engine.evaluate(opened, views, on)
                return result
            made = self._engine.train_forward(batch, opened, views, shapes, on, explicit=ticket)
            return (result, made) if ticket else result

    def backward(
        self,
        grad: Any,
        ticket: Ticket | None = None,
        *,
        stream: Any = None,
        out: Any = None,
        weight_grad: bool = True,
    ) -> Any:
        """Update the rows of a forward with the fused optimizers, or of several at once.

        Parameters
        ----------
        grad : float32, float16 or bfloat16 array (B, sum of D), or a dict like the forward's output
            Gradient of the output, of any of these types whatever the output's. Or a list of
            (gradient, ticket): one update from several forwards, with gradients of one type, in
            which each row's gradient is summed over all of them in the list's order.
        ticket : Ticket, optional
            The forward it belongs to; without one, the latest training forward.
        stream
            As in `forward`.
        out : float32 array (N,), optional
            Where to write the gradient of the per-sample weights, if the forward had them as one
            array. With a list of pairs, a list with an entry for each.
        weight_grad : bool
            False: the gradient of the weights is not computed, and None is returned in its place.

        Returns
        -------
        None or numpy.ndarray or Tensor (N,), float32
            The gradient of the per-sample weights where the forward had them, computed from the
            rows as they are at this call, before the update. A dict of table name -> array where
            they were one. With a list of pairs, a list with an entry for each.

        Raises
        ------
        RuntimeError
            If the forward was used already, was dropped, or there was none.
        NonFiniteUpdateError
            With ``on_nonfinite="raise"``, after the other rows have been updated; a
            FloatingPointError, whose `weight_grad` is what would have been returned. On a device
            it comes later, without a `weight_grad`: see `check`.
        """
        if isinstance(grad, list | tuple):
            pairs, outs = pairs_of(grad, ticket, out)
        else:
            pairs, outs = [(grad, ticket)], [out]
        several, wanted = isinstance(grad, list), boolean("weight_grad", weight_grad)
        return self._backward(pairs, outs, stream, several=several, weight_grad=wanted)

    def _backward(
        self,
        pairs: list[tuple[Any, Ticket | None]],
        outs: list[Any],
        stream: Any,
        *,
        several: bool,
        weight_grad: bool,
    ) -> Any:
        """Update the rows of (gradient, ticket) pairs; what is returned is for one or several."""
        tickets = [ticket for _, ticket in pairs]
        if not weight_grad and any(out is not None for out in outs):
            raise ValueError(
                "out must be None where weight_grad is False: nothing is written to it"
            )
        wait_until_computed([grad for grad, _ in pairs])
        refuse = partial(self._engine.refuse_backward, tickets, outs, weight_grad=weight_grad)
        with self._calls.on_stream(stream, refuse, changes=True) as on:
            used = self._engine.tickets_for_backward(tickets, on)
            views, results, written = [], [], []
            for i, ticket in enumerate(used):
                opened, number = batch_of(ticket), f"[{i}]" if several else ""
                view = self._gradient(opened, pairs[i][0], f"grad{number}", on)
                result = target = None
                if weight_grad:
                    result, target = self._weight_grad(opened, outs[i], f"out{number}", view, on)
                    result = batches.by_table(result, opened.named_counts)
                views.append(view)
                results.append(result)
                written.append(target)
            given = [one for grad in views for one in outputs.each_view(grad)]
            if len(used) > 1:
                outputs.require_one_dtype(
                    given, "all gradients of an update have one dtype: cast one of them"
                )
                refuse_shared_results(written, views)
            refuse_moved([*written, *given])
            self._engine.backward(used, views, written, on)
            returned = results if several else results[0]
            if on.device.raises_at_once:
                self._engine.raise_found(on, returned)
            return returned

    def weight_grad(
        self, grad: Any, ticket: Ticket | None = None, *, stream: Any = None, out: Any = None
    ) -> Any:
        """Return the gradient of a forward's per-sample weights, and change nothing.

        It is what `backward` would return now; call that with ``weight_grad=False`` later. Use it
        where the gradient is needed before the update, as when that sums several forwards.

        Parameters
        ----------
        grad, ticket, stream, out
            As in `backward`, of one forward.

        Returns
        -------
        numpy.ndarray or Tensor (N,), float32
            A dict of table name -> array where the weights were one.

        Raises
        ------
        ValueError
            If the forward had no per-sample weights.
        RuntimeError
            If it was used already, was dropped, or there was none.
        """
        wait_until_computed(grad)
        refuse = partial(self._engine.refuse_backward, [ticket], [out])
        with self._calls.on_stream(stream, refuse) as on:
            (used,) = self._engine.tickets_for_backward([ticket], on)
            opened = batch_of(used)
            if not opened.weighted:
                raise ValueError("the forward had no per_sample_weights, so they have no gradient")
            view = self._gradient(opened, grad, "grad", on)
            result, target = self._weight_grad(opened, out, "out", view, on)
            refuse_moved([target, *outputs.each_view(view)])
            opened.opened.weight_grad(view, target, on)
            return batches.by_table(result, opened.named_counts)

    def _gradient(self, used: OpenBatch, grad: Any, name: str, on: Stream) -> Any:
        """Return the checked view of an output's gradient, or a dict of them."""
        views = outputs.export(grad, name, self._engine.unpooled, on)
        outputs.require_matrices(views, used.shapes, writable=False)
        self._storage.refuse_own_memory(views)
        return views

    def _weight_grad(
        self, used: OpenBatch, out: Any, name: str, grad: Any, on: Stream
    ) -> tuple[Any, Any]:
        """Return where the gradient of the per-sample weights goes, and its view."""
        if not used.weighted:
            if out is not None:
                raise ValueError(
                    f"{name} must be None: it is for the gradient of per_sample_weights, and the "
                    "forward had none"
                )
            return None, None
        if out is not None and used.named_counts is not None:
            raise ValueError(
                f"{name} must be None: the forward's per_sample_weights were a dict, and so is "
                "their gradient"
            )
        read = outputs.each_view(grad)
        shape = (used.num_indices,)
        result, written = arrays.result_view(
            out, shape, np.float32, arrays.FLOAT, on, *read, name=name
        )
        if out is not None:
            self._storage.refuse_own_memory(written)
        return result, written
