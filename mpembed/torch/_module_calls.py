"""The calls of a module's collection: tensors in, tensors out, the fused update between."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mpembed.collection import EmbeddingBagCollection
from mpembed.tickets import Ticket

if TYPE_CHECKING:
    from mpembed.torch._optimizer import FusedOptimizer

Pieces = list[tuple[int, int]]
#: A forward that waits for its backward: its ticket; where each piece of the arranged batch lay in
#: the caller's, if it was arranged; the caller's number of indices.
Opened = tuple[Ticket, Pieces | None, int]


class Calls:
    """A collection as modules and operators call it; `handle` is its number for operators.

    Attributes
    ----------
    clip_value, clip_norm : float or None
        Limits of the gradient of an output.
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_facade",
        "_group",
        "_plain",
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
        tables = collection.tables
        # One table without pooling: its output comes in a dict.
        self._unpooled = tables[0].name if tables[0].pooling == "none" else None
        self._device = None if collection.device == "cpu" else torch.device(collection.device)
        self._facade: weakref.ref[FusedOptimizer] | None = None
        self._group = 0
        self.clip(clip_value, clip_norm)
        self.handle = next(_numbers)
        _live[self.handle] = self

    def clip(self, value: float | None, norm: float | None) -> None:
        """Set the limits of the gradient of an output."""
        self.clip_value, self.clip_norm = value, norm
        self._plain = self._facade is None and value is None and norm is None

    def follow(self, facade: FusedOptimizer, group: int) -> None:
        """Take the learning rate, and the scale of gradients, of a group of parameters."""
        self._facade, self._group = weakref.ref(facade), group
        self._plain = False

    # ---- forward ---------------------------------------------------------------------------

    def _stream(self) -> int | None:
        if self._device is None:
            return None
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def _tensor(self, result: Any) -> Tensor:
        if self._unpooled is not None:
            result = result[self._unpooled]
        return torch.from_numpy(result) if self._device is None else from_dlpack(result)

    def evaluate(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
    ) -> Tensor:
        """Look up without any change of state; `order` as in `arranged`."""
        indices, offsets, weights, _ = _ordered(indices, offsets, weights, order)
        result = self.collection.forward(
            indices, offsets, weights, stream=self._stream(), training=False
        )
        return self._tensor(result)

    def open(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
    ) -> tuple[Tensor, Opened]:
        """Look up a training batch, whose rows are pinned until `update` or its ticket's end."""
        count = indices.shape[0]
        indices, offsets, weights, pieces = _ordered(indices, offsets, weights, order)
        result, ticket = self.collection.forward(
            indices, offsets, weights, stream=self._stream(), ticket=True
        )
        # The graph alone decides how long the batch stays open.
        self.collection.state.engine.detach(ticket)
        return self._tensor(result), (ticket, pieces, count)

    # ---- backward --------------------------------------------------------------------------

    def update(self, opened: Opened, grad: Tensor) -> tuple[Tensor | None, bool]:
        """Update the rows of a forward; return the gradient of its weights, and whether it did.

        It does not if gradients are scaled and this one is not finite: a smaller scale follows.
        """
        ticket, pieces, count = opened
        if grad.dtype is not torch.float32 or not grad.is_contiguous():
            grad = grad.to(torch.float32).contiguous()
        if not self._plain:
            prepared = self._prepared(grad)
            if prepared is None:
                ticket.drop()
                lost = grad.new_full((count,), torch.nan) if ticket.weighted else None
                return lost, False
            grad = prepared
        values = grad if self._unpooled is None else {self._unpooled: grad}
        result = self.collection.backward(values, ticket, stream=self._stream())
        if result is None:
            return None, True
        host = self._device is None
        weight_grad = torch.from_numpy(result) if host else from_dlpack(result)
        return weight_grad if pieces is None else _returned(weight_grad, pieces, count), True

    def _prepared(self, grad: Tensor) -> Tensor | None:
        """Return the gradient to apply, or None for none; take the learning rate over."""
        facade = None if self._facade is None else self._facade()
        if facade is not None:
            facade.apply(self._group)
            unscaled = facade.unscaled(grad)
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


_numbers = itertools.count(1)
_live: weakref.WeakValueDictionary[int, Calls] = weakref.WeakValueDictionary()


def live(handle: int) -> Calls:
    """Return the calls with this number."""
    found = _live.get(handle)
    if found is None:
        raise RuntimeError(f"the module with the tables of handle {handle} exists no more")
    return found


# ---- the order of features -------------------------------------------------------------------


def arranged(
    values: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None, Pieces]:
    """Put the features of a batch in another order.

    Parameters
    ----------
    values : Tensor (N,)
        Indices, feature by feature.
    offsets : Tensor (K * B + 1,)
        As a KeyedJaggedTensor of K features has them.
    weights : Tensor (N,), optional
        Per-sample weights.
    order : sequence of int
        K first, then the feature of each place, -1 for bags without indices.

    Returns
    -------
    tuple
        Indices, offsets and weights in that order, and where each piece of them lay.
    """
    keys, places = order[0], order[1:]
    stride = (offsets.shape[0] - 1) // keys
    if stride * keys + 1 != offsets.shape[0]:
        raise ValueError(
            f"offsets must have {keys} x batch size + 1 entries, got {offsets.shape[0]}"
        )
    ends = [0] * (keys + 1) if stride == 0 else offsets[::stride].tolist()
    if ends[0] != 0 or ends[-1] != values.shape[0] or sorted(ends) != ends:
        raise ValueError(
            f"offsets must not decrease, start at 0 and end at the number of indices, "
            f"{values.shape[0]}; at the features they are {ends}"
        )
    pieces = [(ends[k], ends[k + 1]) if k >= 0 else (0, 0) for k in places]
    # One row more than there are features, of no indices: the one of -1.
    lengths = offsets.new_zeros(keys + 1, stride)
    lengths[:keys] = (offsets[1:] - offsets[:-1]).view(keys, stride)
    result = offsets.new_zeros(len(places) * stride + 1)
    torch.cumsum(lengths[list(places)].reshape(-1), 0, out=result[1:])
    joined = torch.cat([values[a:b] for a, b in pieces])
    if weights is not None:
        weights = torch.cat([weights[a:b] for a, b in pieces])
    return joined, result, weights, pieces


def _ordered(
    indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None, Pieces | None]:
    """Put the features in order where there is one to put them in; make all contiguous."""
    if order:
        return arranged(indices, offsets, weights, order)
    if weights is not None:
        weights = weights.contiguous()
    return indices.contiguous(), offsets.contiguous(), weights, None


def _returned(values: Tensor, pieces: Pieces, count: int) -> Tensor:
    """Add up what belongs to each index of the caller's batch."""
    result = values.new_zeros(count)
    start = 0
    for a, b in pieces:
        result[a:b] += values[start : start + b - a]
        start += b - a
    return result
