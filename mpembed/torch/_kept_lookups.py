"""Lookups with the gradients of their outputs: joined, by table, and the norm that rows see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection

#: Of an output: a tensor, or one of each table by its name where one is unpooled.
Values: TypeAlias = Tensor | dict[str, Tensor]

_PART = 1 << 16  # rows of gradients that are summed at a time


class Lookup(NamedTuple):
    """A batch that was looked up, with the gradient of its output.

    Attributes
    ----------
    indices, offsets, weights : Tensor, Tensor, Tensor or None
        Table-major, as the collection takes them.
    values : Tensor or dict of str -> Tensor
        The gradient, FP32.
    """

    indices: Tensor
    offsets: Tensor
    weights: Tensor | None
    values: Values

    def scaled(self, scale: float) -> Lookup:
        """Return the same lookup with another gradient."""
        values: Values
        if isinstance(self.values, Tensor):
            values = self.values * scale
        else:
            values = {name: value * scale for name, value in self.values.items()}
        return Lookup(self.indices, self.offsets, self.weights, values)


def _join(parts: Sequence[Values]) -> Values:
    if isinstance(parts[0], Tensor):
        return torch.cat([one for one in parts if isinstance(one, Tensor)])
    dicts = [one for one in parts if isinstance(one, dict)]
    return {name: torch.cat([one[name] for one in dicts]) for name in dicts[0]}


def merged(lookups: Sequence[Lookup], tables: int) -> Lookup:
    """Return the batch that holds the bags of several, in their order, for each table."""
    if len(lookups) == 1:
        return lookups[0]
    lengths = [one.offsets.long().diff().view(tables, -1) for one in lookups]
    joined = torch.cat(lengths, dim=1).flatten()
    offsets = torch.cat((joined.new_zeros(1), joined.cumsum(0)))
    pieces = [_by_table(one.indices.long(), n) for one, n in zip(lookups, lengths, strict=True)]
    indices = torch.cat([one[t] for t in range(tables) for one in pieces])
    weights = None
    if any(one.weights is not None for one in lookups):
        factors = [_by_table(_weights(one), n) for one, n in zip(lookups, lengths, strict=True)]
        weights = torch.cat([one[t] for t in range(tables) for one in factors])
    return Lookup(indices, offsets, weights, _join([one.values for one in lookups]))


def _weights(one: Lookup) -> Tensor:
    if one.weights is not None:
        return one.weights
    return torch.ones(one.indices.shape[0], dtype=torch.float32, device=one.indices.device)


def _by_table(values: Tensor, lengths: Tensor) -> Sequence[Tensor]:
    sizes: list[int] = lengths.sum(1).tolist()
    pieces: Sequence[Tensor] = values.split(sizes)
    return pieces


class OfTable(NamedTuple):
    """A table's part of a lookup.

    Attributes
    ----------
    indices, weights : Tensor (n,), Tensor (n,) or None
        Of the table.
    bags : Tensor (n,)
        The row of `grad` that each index gets.
    grad : Tensor (bags, D)
        Of the output; of a mean, divided by the number of indices.
    """

    indices: Tensor
    weights: Tensor | None
    bags: Tensor
    grad: Tensor


def tables_of(collection: EmbeddingBagCollection, one: Lookup) -> list[OfTable]:
    """Return the part of each table."""
    tables = collection.tables
    lengths = one.offsets.long().diff().view(len(tables), -1)
    indices = _by_table(one.indices, lengths)
    weights: Sequence[Any] = [None] * len(tables)
    if one.weights is not None:
        weights = _by_table(one.weights, lengths)
    found, column = [], 0
    for t, table in enumerate(tables):
        if isinstance(one.values, Tensor):
            grad = one.values[:, column : column + table.embedding_dim]
            column += table.embedding_dim
        else:
            grad = one.values[table.name]
        if table.pooling == "none":
            bags = torch.arange(grad.shape[0], device=grad.device)
        else:
            bags = torch.repeat_interleave(lengths[t])
        if table.pooling == "mean":
            grad = grad / lengths[t].clamp(min=1).unsqueeze(1)
        found.append(OfTable(indices[t], weights[t], bags, grad))
    return found


def norm_of_rows(collection: EmbeddingBagCollection, one: Lookup) -> float:
    """Return the L2 norm of the gradient of all rows that train, each summed over its indices."""
    squares = 0.0
    for table, part in zip(collection.tables, tables_of(collection, one), strict=True):
        if collection.optimizers[table.name] is None:
            continue  # frozen
        # Others were left out of the batch.
        known = (part.indices >= 0) & (part.indices < table.num_embeddings)
        weights = None if part.weights is None else part.weights[known]
        squares += _squares_of_rows(part.indices[known], part.bags[known], part.grad, weights)
    return float(squares**0.5)


def _squares_of_rows(indices: Tensor, bags: Tensor, grad: Tensor, factors: Tensor | None) -> float:
    """Return the sum of the squares of the rows' gradients."""
    rows, places = torch.unique(indices, return_inverse=True)
    sums = torch.zeros(rows.shape[0], grad.shape[1], dtype=torch.float32, device=grad.device)
    for start in range(0, indices.shape[0], _PART):
        part = slice(start, start + _PART)
        found = grad.index_select(0, bags[part])
        if factors is not None:
            found = found * factors[part].unsqueeze(1)
        sums.index_add_(0, places[part], found)
    return float(torch.linalg.vector_norm(sums, dtype=torch.float64)) ** 2
