"""The arguments of the forward of bags, as ``torch.nn.EmbeddingBag`` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mpembed.torch._bag_errors import checked_offsets
from mpembed.torch._dense import dense


class BagArguments(NamedTuple):
    """A batch of one table.

    Attributes
    ----------
    input, offsets, weights : Tensor, Tensor, Tensor or None
        Of one dimension; the last offset is the number of indices.
    given_offsets : Tensor or None
        The caller's, if there were any.
    """

    input: Tensor
    offsets: Tensor
    weights: Tensor | None
    given_offsets: Tensor | None


def bag_arguments(
    input: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    equal_bags: Callable[[Tensor, int, int], Tensor],
    *,
    include_last_offset: bool,
) -> BagArguments:
    """Return the batch of a forward's arguments; ValueError or TypeError for wrong ones.

    Parameters
    ----------
    input, offsets, weights
        The caller's.
    equal_bags : callable
        Returns the offsets of bags of one size, as `equal_bag_offsets` does.
    include_last_offset : bool
        Whether `offsets` ends with the number of indices.
    """
    if weights is not None and dense("per_sample_weights", weights).shape != input.shape:
        raise ValueError(
            f"per_sample_weights must have the shape of input, {tuple(input.shape)}, got "
            f"{tuple(weights.shape)}"
        )
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("offsets must be None where input has two dimensions: a row is a bag")
        if input.is_nested:
            raise ValueError("a nested input is not supported: pass its values and offsets")
        bags = equal_bags(input, *input.shape)
        flat = None if weights is None else weights.reshape(-1)
        return BagArguments(input.reshape(-1), bags, flat, None)
    if input.dim() != 1:
        raise ValueError(f"input must have one or two dimensions, got {input.dim()}")
    given = ends = checked_offsets(offsets)
    if not include_last_offset:
        end = torch.full((1,), input.shape[0], dtype=given.dtype, device=given.device)
        ends = torch.cat((given, end))
    return BagArguments(input, ends, weights, given)
