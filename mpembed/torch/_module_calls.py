"""The calls of a module's collection: lookups, and the update of what they looked up."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed.torch._backward_pass import BackwardPass, Waiting, current_pass
from mpembed.torch._batch import PreparedBatch
from mpembed.torch._exchange import tensor_of
from mpembed.torch._forward_calls import (
    KERNEL_DTYPES,
    AttachedOptimizer,
    ForwardCalls,
    OpenForward,
)
from mpembed.torch._kept_lookups import Lookup, Values
from mpembed.torch._pending import Update
from mpembed.torch._weight_grad import weight_grad


class ModuleCalls(ForwardCalls):
    """A collection as modules and operators call it.

    Parameters
    ----------
    collection, clip_value, clip_norm, padding_idx
        As in `ForwardCalls`.

    Attributes
    ----------
    handle : int
        The number by which operators find this object.
    """

    __slots__ = ("handle",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.handle = next(_handles)
        _by_handle[self.handle] = self

    def backward(self, forward: OpenForward, given: Sequence[Tensor]) -> tuple[Tensor | None, bool]:
        """Update the rows of a forward, or keep its gradient; see `_backward_pass`.

        Parameters
        ----------
        forward : OpenForward
            From `train_forward`.
        given : sequence of Tensor
            The gradient of each of its outputs.

        Returns
        -------
        weight_grad : Tensor or None
            The gradient of the per-sample weights, if there were any.
        updated : bool
            False where a scaled gradient is not finite: no row changes, and the scaler will lower
            its scale.
        """
        optimizer = self.optimizer
        keep = forward.ticket is None
        one_pass = None
        scales = optimizer is not None and optimizer.scales
        if keep or scales or self.reads or self._engine.num_forwards > 1:
            one_pass = current_pass()
        at_once = self._gradient_as_is and one_pass is None and not keep
        grads = [_plain(grad, KERNEL_DTYPES if at_once else (torch.float32,)) for grad in given]
        if not self._gradient_as_is:
            prepared = self._prepared(grads, None if keep and not scales else optimizer)
            if prepared is None:
                return self._skip(forward, grads, optimizer, one_pass), False
            grads = prepared
        if forward.batch.padded and not self._pools:
            grads = [forward.batch.without_padding(grads[0])]
        if one_pass is None and not keep:
            self._apply_rates(optimizer)
            stream = self.current_stream()
            result = self.collection.backward(self._named(grads), forward.ticket, stream=stream)
            return self._weight_grad(forward, result), True
        grads = [
            grad.clone() if grad.data_ptr() == one.data_ptr() else grad
            for grad, one in zip(grads, given, strict=True)  # autograd's, who may reuse it
        ]
        return self._wait(forward, grads, optimizer, one_pass), True

    def update_rows(self, ids: Tensor, grads: Tensor) -> None:
        """Update rows of the only table, without a lookup, as a backward does."""
        count = ids.shape[0]
        if count == 0 and self._replicas is None:
            return
        offsets = torch.arange(count + 1, dtype=torch.int64, device=ids.device)
        if not self._pools:
            offsets = offsets[[0, -1]]
        batch = PreparedBatch(ids, offsets, None, count)
        forward = OpenForward(None, batch)
        optimizer = self.optimizer
        scales = optimizer is not None and optimizer.scales
        one_pass = current_pass()
        plain = [_plain(grads)]
        prepared = self._prepared(plain, optimizer if scales else None)
        if prepared is None:
            self._skip(forward, plain, optimizer, one_pass)
        else:
            self._wait(forward, prepared, optimizer, one_pass)

    def _apply_rates(self, optimizer: AttachedOptimizer | None) -> None:
        """Give the learning rates of an optimizer's groups to the tables."""
        if optimizer is not None:
            for group in self._groups:
                optimizer.apply_lr(group)

    def _named(self, grads: Sequence[Tensor]) -> Values:
        return grads[0] if self._pools else dict(zip(self._names, grads, strict=True))

    def _wait(
        self,
        forward: OpenForward,
        grads: Sequence[Tensor],
        optimizer: AttachedOptimizer | None,
        one_pass: BackwardPass | None,
    ) -> Tensor | None:
        """Update at the end of the pass, or later; return the gradient of the weights now."""
        batch, values = forward.batch, self._named(grads)
        found = self._weight_grad_now(forward, values)
        lookup = None
        if forward.ticket is None:
            lookup = Lookup(batch.indices, batch.offsets, batch.weights, values)
        waiting = Waiting(
            number=forward.number,
            calls=self,
            collection=self.collection,
            ticket=forward.ticket,
            lookup=lookup,
            grads=grads,
            values=values,
            stream=self._stream(),
            optimizer=optimizer,
            groups=() if optimizer is None else self._groups,
            keep=forward.ticket is None and self._keeps(),
        )
        if one_pass is None:
            alone = BackwardPass()
            alone.add(waiting)
            alone.finish()
        else:
            one_pass.add(waiting)
        return found

    def _weight_grad_now(self, forward: OpenForward, values: Values) -> Tensor | None:
        """Return the gradient of the weights before the update."""
        batch, stream = forward.batch, self.current_stream()
        if forward.ticket is not None and forward.ticket.weighted:
            result = self.collection.weight_grad(values, forward.ticket, stream=stream)
            return self._weight_grad(forward, result)
        if forward.ticket is None and batch.weights is not None:
            lookup = Lookup(batch.indices, batch.offsets, batch.weights, values)
            return batch.weight_grad(weight_grad(self.collection, lookup, stream))
        return None

    def weight_grad_of(self, batch: PreparedBatch, grads: Sequence[Tensor]) -> Tensor:
        """Return the gradient of the weights of a lookup that trains no rows."""
        plain = [_plain(grad) for grad in grads]
        lookup = Lookup(batch.indices, batch.offsets, batch.weights, self._named(plain))
        return batch.weight_grad(weight_grad(self.collection, lookup, self.current_stream()))

    def _skip(
        self,
        forward: OpenForward,
        grads: Sequence[Tensor],
        optimizer: AttachedOptimizer | None,
        one_pass: BackwardPass | None,
    ) -> Tensor | None:
        """Drop a forward whose gradient is not finite, and with it what its optimizer updates."""
        if one_pass is not None and optimizer is not None:
            one_pass.skip(optimizer)
        forward.drop()
        batch = forward.batch
        if batch.weights is None:
            return None
        return grads[0].new_full((batch.num_indices,), torch.nan)

    def _weight_grad(self, forward: OpenForward, result: Any) -> Tensor | None:
        """Return the gradient of the weights in the order of the caller's batch."""
        return None if result is None else forward.batch.weight_grad(tensor_of(result))

    def _prepared(
        self, grads: list[Tensor], optimizer: AttachedOptimizer | None
    ) -> list[Tensor] | None:
        """Return the gradients unscaled and clipped; None where one is not finite."""
        if optimizer is not None:
            unscaled = [optimizer.unscale(grad) for grad in grads]
            grads = [grad for grad in unscaled if grad is not None]
            if len(grads) < len(unscaled):
                return None
        if self.clip_value is not None:
            grads = [grad.clamp(-self.clip_value, self.clip_value) for grad in grads]
        if self.clip_norm is not None:
            norm = float(torch.stack([torch.linalg.vector_norm(g) for g in grads]).norm())
            if norm > self.clip_norm:
                grads = [grad * (self.clip_norm / norm) for grad in grads]
        return grads

    # ---- what waits --------------------------------------------------------------------------

    def keep(self, number: int, lookup: Lookup) -> None:
        """Keep a lookup until all of a step, or of all replicas, are there."""
        self.pending.add(number, lookup)

    def end_of_pass(self) -> bool:
        """Gather the lookups of all replicas; return whether to update, and not at a step."""
        replicas = self._replicas
        if replicas is not None:
            if not replicas.synchronise:
                return False
            device = self._device or torch.device("cpu")
            own = self.pending.own()
            self.pending.share(replicas.gather(self.collection, own, device))
        if self.defers:
            return False
        self._apply_rates(self.optimizer)
        return True

    def update_all(self, several: Sequence[ModuleCalls], stream: int | None) -> None:
        """Make one update from what modules with this collection have kept."""
        update_pending(several, stream)


def update_pending(several: Sequence[ModuleCalls], stream: int | None) -> None:
    """Make one update from what waits for modules with the same collection.

    What waits is kept if the update does not happen, and used up if it does, whatever is raised.
    """
    found = sorted(
        (one for calls in several for one in calls.pending.lookups()), key=lambda one: one[0]
    )
    if not found:
        return
    update = Update()
    try:
        for calls in several:
            calls.pending.begin_update(update)
        update.make(several[0].collection, [lookup for _, lookup in found], stream)
    finally:
        for calls in several:
            calls.pending.end_update()


def _plain(grad: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> Tensor:
    """Return a gradient as the collection takes it, of one of these types; else in FP32."""
    if grad.dtype not in dtypes:
        grad = grad.to(torch.float32)
    return grad.contiguous()


_handles = itertools.count(1)
_by_handle: weakref.WeakValueDictionary[int, ModuleCalls] = weakref.WeakValueDictionary()


def calls_of(handle: int) -> ModuleCalls:
    """Return the object that has this handle."""
    found = _by_handle.get(handle)
    if found is None:
        raise RuntimeError(
            "the module of this compiled lookup no longer exists: keep it as long as the compiled "
            f"code is called (handle {handle})"
        )
    return found
