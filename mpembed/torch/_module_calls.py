"""The calls of a module's collection: tensors in, tensors out, the fused update between."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.tickets import Ticket
from mpembed.torch._feature_order import Segments, reorder, restore_order


class AttachedOptimizer(Protocol):
    """What a backward asks of the optimizer that its module is attached to."""

    def apply_lr(self, group: int) -> None:
        """Give the learning rate of a group of parameters to the tables of the group."""

    def unscale(self, grad: Tensor) -> Tensor | None:
        """Return a gradient without the loss's scale; None where it is not finite."""


class OpenForward:
    """A training forward that waits for its backward.

    Attributes
    ----------
    ticket : Ticket
        The collection's, of the open batch.
    segments : list of (int, int), or None
        Where the pieces of the batch lay in the caller's, if it was reordered.
    num_indices : int
        Of the caller's batch.
    """

    __slots__ = ("num_indices", "segments", "ticket")

    def __init__(self, ticket: Ticket, segments: Segments | None, num_indices: int) -> None:
        self.ticket, self.segments, self.num_indices = ticket, segments, num_indices


class ModuleCalls:
    """A collection as modules and operators call it.

    Parameters
    ----------
    collection : mpembed.EmbeddingBagCollection
        The tables.
    clip_value, clip_norm : float or None
        Limits of the gradient of an output.

    Attributes
    ----------
    handle : int
        The number by which operators find this object.
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_engine",
        "_gradient_as_is",
        "_groups",
        "_optimizer",
        "_unpooled",
        "clip_norm",
        "clip_value",
        "collection",
        "handle",
    )

    def __init__(
        self,
        collection: EmbeddingBagCollection,
        clip_value: float | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.collection = collection
        self._engine = collection_state(collection).engine
        tables = collection.tables
        # One table without pooling: its output comes in a dict.
        self._unpooled = tables[0].name if tables[0].pooling == "none" else None
        self._device = None if collection.device == "cpu" else torch.device(collection.device)
        self._optimizer: weakref.ref[AttachedOptimizer] | None = None
        self._groups: tuple[int, ...] = ()
        self.set_clipping(clip_value, clip_norm)
        self.handle = next(_handles)
        _by_handle[self.handle] = self

    def set_clipping(self, value: float | None, norm: float | None) -> None:
        """Set the limits of the gradient of an output."""
        self.clip_value, self.clip_norm = value, norm
        self._gradient_as_is = self._optimizer is None and value is None and norm is None

    def attach_optimizer(self, optimizer: AttachedOptimizer, groups: Sequence[int]) -> None:
        """Take learning rates and scale from an optimizer's groups as long as it lives."""
        self._optimizer, self._groups = weakref.ref(optimizer), tuple(groups)
        self._gradient_as_is = False

    # ---- forward ---------------------------------------------------------------------------

    def _current_stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def _tensor(self, result: Any) -> Tensor:
        if self._unpooled is not None:
            result = result[self._unpooled]
        return torch.from_numpy(result) if self._device is None else from_dlpack(result)

    def evaluate(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
    ) -> Tensor:
        """Look up without any change of state; `order` as in `_feature_order`."""
        indices, offsets, weights, _ = _ordered(indices, offsets, weights, order)
        stream = None if self._device is None else self._current_stream()
        result = self.collection.forward(indices, offsets, weights, stream=stream, training=False)
        return self._tensor(result)

    def train_forward(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
    ) -> tuple[Tensor, OpenForward]:
        """Look up a training batch; its rows are pinned until `backward` or its ticket's end."""
        num_indices = indices.shape[0]
        indices, offsets, weights, segments = _ordered(indices, offsets, weights, order)
        stream = None if self._device is None else self._current_stream()
        result, ticket = self.collection.forward(
            indices, offsets, weights, stream=stream, ticket=True
        )
        # The autograd graph alone decides how long the batch stays open.
        self._engine.detach(ticket)
        return self._tensor(result), OpenForward(ticket, segments, num_indices)

    # ---- backward --------------------------------------------------------------------------

    def backward(self, forward: OpenForward, grad: Tensor) -> tuple[Tensor | None, bool]:
        """Update the rows of a forward.

        Returns
        -------
        weight_grad : Tensor or None
            The gradient of the per-sample weights, if there were any.
        updated : bool
            False where a scaled gradient is not finite: no row changes, and the scaler will lower
            its scale.
        """
        ticket = forward.ticket
        if grad.dtype is not torch.float32 or not grad.is_contiguous():
            grad = grad.to(torch.float32).contiguous()
        if not self._gradient_as_is:
            prepared = self._prepared(grad)
            if prepared is None:
                ticket.drop()
                nan = grad.new_full((forward.num_indices,), torch.nan) if ticket.weighted else None
                return nan, False
            grad = prepared
        values = grad if self._unpooled is None else {self._unpooled: grad}
        stream = None if self._device is None else self._current_stream()
        result = self.collection.backward(values, ticket, stream=stream)
        if result is None:
            return None, True
        weight_grad = torch.from_numpy(result) if self._device is None else from_dlpack(result)
        if forward.segments is not None:
            weight_grad = restore_order(weight_grad, forward.segments, forward.num_indices)
        return weight_grad, True

    def _prepared(self, grad: Tensor) -> Tensor | None:
        """Apply the attached learning rates; return the gradient unscaled and clipped, or None."""
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is not None:
            for group in self._groups:
                optimizer.apply_lr(group)
            unscaled = optimizer.unscale(grad)
            if unscaled is None:
                return None
            grad = unscaled
        if self.clip_value is not None:
            grad = grad.clamp(-self.clip_value, self.clip_value)
        if self.clip_norm is not None:
            norm = float(torch.linalg.vector_norm(grad))
            if norm > self.clip_norm:
                grad = grad * (self.clip_norm / norm)
        return grad


def _ordered(
    indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None, Segments | None]:
    """Reorder a batch where there is an order; make all of it contiguous."""
    if order:
        return reorder(indices, offsets, weights, order)
    if weights is not None:
        weights = weights.contiguous()
    return indices.contiguous(), offsets.contiguous(), weights, None


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
