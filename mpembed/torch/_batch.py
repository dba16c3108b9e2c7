"""A caller's batch as a collection takes it: in the tables' order, without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpembed.torch._feature_order import Segments, reorder, restore_order


class PreparedBatch:
    """A batch, and how its results go back to the order of the caller's.

    Attributes
    ----------
    indices, offsets, weights : Tensor, Tensor, Tensor or None
        What the collection takes.
    num_indices : int
        Of the caller's batch.
    """

    __slots__ = ("_kept", "_segments", "indices", "num_indices", "offsets", "weights")

    def __init__(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        num_indices: int,
        segments: Segments | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.indices, self.offsets, self.weights = indices, offsets, weights
        self.num_indices, self._segments, self._kept = num_indices, segments, kept

    @property
    def padded(self) -> bool:
        """Whether padding was left out."""
        return self._kept is not None

    def among_padding(self, rows: Tensor, padding: Tensor) -> Tensor:
        """Put unpooled rows where their indices were, and the padding row elsewhere."""
        if self._kept is None:
            return rows
        out = padding.to(rows.dtype).expand(self.num_indices, -1).clone()
        return out.index_copy_(0, self._kept, rows)

    def without_padding(self, grad: Tensor) -> Tensor:
        """Return the gradient of the rows that are not padding."""
        return grad if self._kept is None else grad.index_select(0, self._kept)

    def weight_grad(self, found: Tensor) -> Tensor:
        """Return the gradient of the weights in the order of the caller's batch; 0 of padding."""
        if self._segments is not None:
            return restore_order(found, self._segments, self.num_indices)
        if self._kept is not None:
            return found.new_zeros(self.num_indices).index_copy_(0, self._kept, found)
        return found

    def kept_for_later(self) -> PreparedBatch:
        """Return it with copies of what may be the caller's memory."""
        if self._segments is None and self._kept is None:
            self.indices, self.offsets = self.indices.clone(), self.offsets.clone()
        if self.weights is not None:
            self.weights = self.weights.clone()
        return self


def prepare(
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    order: Sequence[int],
    padding_idx: int | None = None,
) -> PreparedBatch:
    """Return a batch in the tables' order, all of it contiguous; `order` as in `_feature_order`.

    Indices that are `padding_idx` are left out of their bags. A batch with malformed offsets stays
    as it is, for the collection to refuse.
    """
    count = indices.shape[0]
    if order:
        indices, offsets, weights, segments = reorder(indices, offsets, weights, order)
        return PreparedBatch(indices, offsets, weights, count, segments)
    if padding_idx is not None:
        found = indices != padding_idx
        if not bool(found.all()) and _well_formed(offsets, count):
            kept = found.nonzero().squeeze(1)
            before = torch.cat((found.new_zeros(1, dtype=offsets.dtype), found.cumsum(0)))
            chosen = None if weights is None else weights.index_select(0, kept)
            ends = before[offsets.long()].to(offsets.dtype)
            return PreparedBatch(indices.index_select(0, kept), ends, chosen, count, None, kept)
    if weights is not None:
        weights = weights.contiguous()
    return PreparedBatch(indices.contiguous(), offsets.contiguous(), weights, count)


def _well_formed(offsets: Tensor, count: int) -> bool:
    """Whether offsets start at 0, end at `count`, and never decrease."""
    if offsets.shape[0] < 1 or offsets.dtype not in (torch.int32, torch.int64):
        return False
    rises = bool((offsets[1:] >= offsets[:-1]).all())
    return rises and int(offsets[0]) == 0 and int(offsets[-1]) == count
