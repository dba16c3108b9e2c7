"""Means of tables whose rows lie on several ranks: their sums divided by the lengths of bags.

TorchRec divides the outputs of all tables of a collection where one such table has a mean, also
those that are means already, by a length to which it has added 1e-6, or by the sum of weights. Here
a mean is that of ``mpembed.EmbeddingBagCollection``, whatever the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Output(NamedTuple):
    """A block of columns of the result.

    Attributes
    ----------
    feature : str
        The feature that it is of.
    columns : int
        Its width.
    divides : bool
        Whether it is a sum that has to be divided.
    """

    feature: str
    columns: int
    divides: bool


def divisor(features: Any, outputs: Sequence[Output]) -> Tensor:
    """Return what the result (B, columns of all outputs) is divided by.

    Parameters
    ----------
    features : KeyedJaggedTensor
        The batch of this rank, in any order.
    outputs : sequence of Output
        The blocks of the result.
    """
    places = {key: place for place, key in enumerate(features.keys())}
    lengths = features.lengths().view(len(places), -1)
    counts = lengths.clamp(min=1).to(torch.float32)  # an empty bag's sum is 0
    whole = torch.ones_like(counts[0])
    rows = [counts[places[one.feature]] if one.divides else whole for one in outputs]
    parts = zip(rows, outputs, strict=True)
    return torch.cat([row.unsqueeze(1).expand(-1, one.columns) for row, one in parts], dim=1)
