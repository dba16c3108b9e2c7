"""Wrong offsets and indices of one table, in terms of the arguments of its module's forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpembed.config import TableConfig
from mpembed.torch._dense import dense
from mpembed.torch._indices import position


def checked_offsets(offsets: Any) -> Tensor:
    """Return the offsets of an input of one dimension; raise TypeError or ValueError if wrong."""
    if offsets is None:
        raise ValueError(
            "offsets must be a tensor of one dimension where input has one: it says where each bag "
            "begins; for bags of one size pass an input of two dimensions, a row a bag"
        )
    checked = dense("offsets", offsets)
    if checked.dim() != 1:
        raise ValueError(
            "offsets must be a tensor of one dimension where input has one, got shape "
            f"{tuple(checked.shape)}"
        )
    if checked.dtype is not torch.int64 and checked.dtype is not torch.int32:
        raise TypeError(
            f"offsets must be int32 or int64, got {checked.dtype}: convert it with offsets.long()"
        )
    return checked


def explained(
    error: IndexError | ValueError,
    table: TableConfig,
    input: Tensor,
    offsets: Tensor | None = None,
    *,
    include_last_offset: bool = False,
) -> IndexError | ValueError:
    """Return the error of a lookup as one about `input` or `offsets`.

    Parameters
    ----------
    error : IndexError or ValueError
        The collection's. It is returned where it is about something else.
    table : TableConfig
        The table.
    input : Tensor
        The caller's.
    offsets : Tensor, optional
        The caller's, without an end that was added.
    include_last_offset : bool
        Whether the caller's have one.
    """
    if input.device.type != "cpu":  # a device finds errors later: this one may be another batch's
        return error
    if isinstance(error, IndexError):
        return _index_error(error, table, input)
    text = "" if offsets is None else _about_offsets(offsets, input.shape[0], include_last_offset)
    return ValueError(text) if text else error


def _index_error(error: IndexError, table: TableConfig, input: Tensor) -> IndexError:
    wrong = ((input < 0) | (input >= table.num_embeddings)).nonzero()
    if wrong.shape[0] == 0:
        return error
    value = int(input[tuple(wrong[0])])
    return IndexError(
        f"table {table.name!r} (num_embeddings={table.num_embeddings}): index {value} at position "
        f"{position(wrong[0])} of input is out of range; {wrong.shape[0]} such in the batch"
    )


def _about_offsets(offsets: Tensor, indices: int, include_last_offset: bool) -> str:
    """Return what is wrong with offsets, "" if nothing is."""
    values = offsets.tolist()
    if not values:
        return f"offsets must start with 0, got none, and input has {indices} indices"
    if values[0] != 0:
        return f"offsets must start at 0, got {values[0]}"
    for i in range(1, len(values)):
        if values[i] < values[i - 1]:
            return (
                f"offsets must not decrease: offsets[{i}] is {values[i]}, less than the one before"
            )
    last = f"offsets[{len(values) - 1}] is {values[-1]}"
    if include_last_offset and values[-1] != indices:
        return (
            f"offsets must end at the number of indices, {indices}, as the module has "
            f"include_last_offset=True, but {last}; make it with include_last_offset=False if "
            "offsets has one entry a bag"
        )
    if values[-1] > indices:
        return f"offsets must not exceed the number of indices, {indices}, but {last}"
    return ""
