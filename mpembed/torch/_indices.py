"""What a module takes as indices: PyTorch's integers of 32 and 64 bits, signed or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.torch._dense import dense


def row_numbers(indices: Any, name: str, tables: EmbeddingBagCollection) -> Tensor:
    """Return indices of a collection as int32 or int64, as `signed_indices` does."""
    return signed_indices(indices, name, lambda: collection_state(tables).settings.bounds == "drop")


def signed_indices(indices: Any, name: str, drops: Callable[[], bool]) -> Tensor:
    """Return indices as int32 or int64.

    Parameters
    ----------
    indices : Tensor
        int32 or int64, which are returned as they are; uint32, which are copied; or uint64, which
        are read as int64.
    name : str
        What the caller calls them.
    drops : callable
        Says whether the tables drop what is out of range.

    Raises
    ------
    TypeError
        For another type.
    IndexError
        For a number that an int64 does not hold, unless the tables drop what is out of range. (A
        device is not asked: there it is reported as the negative number it becomes.)
    """
    if not isinstance(indices, Tensor):
        indices = dense(name, indices)
    layout = indices.layout
    if layout is not torch.strided and layout is not torch.jagged:  # nested: refused elsewhere, in
        indices = dense(name, indices)  # terms of its values and offsets
    return _signed(indices, name, drops)


def _signed(indices: Tensor, name: str, drops: Callable[[], bool]) -> Tensor:
    dtype = indices.dtype
    if dtype is torch.int64 or dtype is torch.int32:
        return indices
    if dtype is torch.uint32:
        return indices.to(torch.int64)
    if dtype is not torch.uint64:
        raise TypeError(
            f"{name} must be int32, int64, uint32 or uint64, got {dtype}: convert it with "
            f"{name}.long()"
        )
    signed = indices.view(torch.int64)
    if not torch.compiler.is_compiling() and signed.device.type == "cpu":
        _refuse_large(signed, name, drops)
    return signed


def position(at: Tensor) -> int | tuple[int, ...]:
    """Return a position of a tensor, a row of what ``nonzero`` returns, as errors show it."""
    place = tuple(at.tolist())
    return place[0] if len(place) == 1 else place


def _refuse_large(signed: Tensor, name: str, drops: Callable[[], bool]) -> None:
    large = (signed < 0).nonzero()
    if large.shape[0] == 0 or drops():
        return
    value = int(signed[tuple(large[0])]) + 2**64
    raise IndexError(
        f"index {value} at position {position(large[0])} of {name} is out of range: it exceeds "
        f"2^63 - 1; {large.shape[0]} such in the batch"
    )
