"""The rank of the bags: which index goes where, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed import ops
from mpembed._arguments.batches import index_error
from mpembed.config import TableConfig
from mpembed.torch._exchange import current_stream, tensor_of
from mpembed.torch.distributed._plan import ShardedTable

#: As what weights travel among indices of a type, without a change of value.
FLOATS = {torch.int32: torch.float32, torch.int64: torch.float64}


class Route:
    """The way of a table's part of a batch to its shards and back.

    Parameters
    ----------
    table : ShardedTable
        The table.
    indices : int32 or int64 Tensor (n,)
        In range, or -1 to be dropped, which the first shard does and counts.
    lengths : Tensor (B,)
        Indices of each bag.
    weights : Tensor (n,) or None
        Per-sample weights.

    Attributes
    ----------
    counts : list of int
        How many indices each shard gets.
    """

    def __init__(
        self, table: ShardedTable, indices: Tensor, lengths: Tensor, weights: Tensor | None
    ) -> None:
        self._table, self._pooling = table, table.config.pooling
        self._lengths, self._weights = lengths, weights
        if len(table.ranks) == 1 and not table.sends_rows:  # all to one, in their order
            self._order: Any = slice(None)
            self._indices, self.counts = indices, [indices.shape[0]]
            return
        self._bags = torch.repeat_interleave(lengths)
        shards = torch.div(indices, table.block, rounding_mode="floor").clamp_(min=0)
        self._places = shards.long()
        self._order = torch.argsort(shards, stable=True)
        self._indices = (indices - shards * table.block)[self._order]
        self.counts = torch.bincount(self._places, minlength=len(table.ranks)).tolist()

    def sent(self, *, weighted: bool) -> list[list[Tensor]]:
        """Return what each shard gets: lengths and weights, where it pools, and indices."""
        indices = self._indices.split(self.counts)
        if self._table.sends_rows:
            return [[one] for one in indices]
        shards, bags = len(self.counts), self._lengths.shape[0]
        lengths = self._lengths
        if shards > 1:
            lengths = torch.bincount(self._places * bags + self._bags, minlength=shards * bags)
        parts: list[Any] = [lengths.to(self._indices.dtype).view(shards, bags)]
        if weighted:
            whole = torch.ones_like(self._indices) if self._weights is None else self._weights
            as_float = whole[self._order].to(FLOATS[self._indices.dtype])
            parts.append(as_float.view(self._indices.dtype).split(self.counts))
        return [list(one) for one in zip(*parts, indices, strict=True)]

    @property
    def _divides(self) -> bool:
        """Whether the sums of several shards are to be divided here."""
        return self._pooling == "mean" and len(self.counts) > 1

    def pool(self, answers: Sequence[Tensor]) -> Tensor:
        """Return the output (B, D) from the vectors of each shard."""
        vectors = [one.view(-1, self._table.config.embedding_dim) for one in answers]
        if not self._table.sends_rows:
            total = vectors[0]
            for one in vectors[1:]:
                total = total + one
            return total / self._lengths.clamp(min=1).unsqueeze(1) if self._divides else total
        rows = torch.cat(vectors)  # pooled by the kernel of a table that has them all
        offsets = torch.cat((self._lengths.new_zeros(1), self._lengths.cumsum(0)))
        return tensor_of(
            ops.embedding_bag(
                rows.view(torch.uint8),
                "fp32",
                rows.shape[1],
                torch.argsort(self._order),
                offsets,
                pooling=self._pooling,
                per_sample_weights=self._weights,
                stream=current_stream(rows.device),
            )
        )

    def spread(self, grad: Tensor) -> Sequence[Tensor]:
        """Return what each shard gets of the gradient (B, D) of the output."""
        if not self._table.sends_rows:
            grad = grad / self._lengths.clamp(min=1).unsqueeze(1) if self._divides else grad
            return [grad] * len(self.counts)
        found = grad.index_select(0, self._bags)
        coefficients = self._weights
        if self._pooling == "mean":
            divisor = self._lengths[self._bags].to(torch.float32)
            coefficients = (1.0 if coefficients is None else coefficients) / divisor
        if coefficients is not None:
            found = found * coefficients.unsqueeze(1)
        pieces: Sequence[Tensor] = found.index_select(0, self._order).split(self.counts)
        return pieces


def find_routes(
    tables: Sequence[ShardedTable],
    batch: tuple[Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
    drops: Callable[[], bool],
) -> list[Route]:
    """Return the way of each table's indices, which are sent as `dtype`.

    Raises
    ------
    TypeError, ValueError, IndexError
        If the batch, table-major indices, offsets and weights, is wrong.
    """
    indices, offsets, weights = batch
    lengths = _lengths(len(tables), indices, offsets)
    if weights is not None and (weights.dtype, weights.shape) != (torch.float32, indices.shape):
        raise ValueError(
            f"per_sample_weights must be float32 of shape {tuple(indices.shape)}, got "
            f"{weights.dtype} of shape {tuple(weights.shape)}"
        )
    if weights is not None and weights.requires_grad:
        raise ValueError("per_sample_weights get no gradient from sharded tables: detach them")
    counts: list[int] = lengths.sum(1).tolist()
    kept = _in_range([table.config for table in tables], indices, counts, drops).to(dtype)
    factors: Sequence[Any] = [None] * len(tables) if weights is None else weights.split(counts)
    parts = zip(tables, kept.split(counts), lengths, factors, strict=True)
    return [Route(*one) for one in parts]


def _lengths(tables: int, indices: Tensor, offsets: Tensor) -> Tensor:
    """Return the indices of each bag (T, B); TypeError or ValueError where offsets are wrong."""
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.dim() != 1:
        raise TypeError(f"offsets must be an int32 or int64 vector, got {offsets.dtype}")
    if offsets.shape[0] < 1 or (offsets.shape[0] - 1) % tables:
        raise ValueError(
            f"offsets must have {tables} x batch size + 1 entries, got {offsets.shape[0]}"
        )
    lengths = offsets.long().diff()
    first, last = int(offsets[0]), int(offsets[-1])
    if (first, last) != (0, indices.numel()) or indices.dim() != 1 or bool((lengths < 0).any()):
        raise ValueError(
            "offsets must not decrease, start at 0 and end at the number of indices, which are "
            f"{tuple(indices.shape)}; they start at {first} and end at {last}"
        )
    return lengths.view(tables, -1)


def _in_range(
    tables: Sequence[TableConfig], indices: Tensor, counts: list[int], drops: Callable[[], bool]
) -> Tensor:
    """Return the indices, -1 for those to be dropped; IndexError where none may be."""
    rows = torch.tensor([table.num_embeddings for table in tables], device=indices.device)
    each = torch.tensor(counts, device=indices.device)
    wrong = (indices < 0) | (indices >= torch.repeat_interleave(rows, each))
    if not bool(wrong.any()):
        return indices
    if drops():
        return indices.masked_fill(wrong, -1)
    at = int(wrong.nonzero()[0])
    number = next(t for t in range(len(tables)) if at < sum(counts[: t + 1]))
    found = number, at, int(indices[at]), int(wrong.sum())
    raise index_error(tables[number].name, tables[number].num_embeddings, found, "indices")
