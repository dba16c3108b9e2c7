"""Pooling, and the gradients of rows and per-sample weights: sections 4 and 5 of the numerics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .rounding import BLOCK, F32, I64, fmaf, lane_dot

if TYPE_CHECKING:
    from .collection import RefCollection


@dataclass
class TableBatch:
    """One table's part of a batch: rows (-1: dropped), the bag of each index, bag lengths."""

    rows: I64
    bags: I64
    lengths: I64
    at: slice

    @property
    def unique(self) -> I64:
        """Rows of the batch, ascending."""
        rows: I64 = np.unique(self.rows[self.rows >= 0])
        return rows


@dataclass(eq=False)
class RefTicket:
    """A batch between its admission and its backward."""

    key: tuple[list[int], list[int]]  # rows (-1: dropped) and offsets
    tables: list[TableBatch]
    pinned: dict[str, list[int]] = field(default_factory=dict)
    weights: F32 | None = None
    owner: RefCollection | None = None

    def drop(self) -> None:
        """Take the pins back; the batch is not trained."""
        if self.owner is not None:
            self.owner._close(self)


def parse(num_rows: list[int], indices: I64, offsets: I64) -> RefTicket:
    """Cut table-major inputs into one part a table; an index out of range becomes -1."""
    batch_size = (len(offsets) - 1) // len(num_rows)
    parts = []
    for t, count in enumerate(num_rows):
        border = offsets[t * batch_size : (t + 1) * batch_size + 1]
        rows = indices[border[0] : border[-1]].copy()
        rows[(rows < 0) | (rows >= count)] = -1
        lengths = np.diff(border)
        bags = np.repeat(np.arange(batch_size), lengths)
        parts.append(TableBatch(rows, bags, lengths, slice(int(border[0]), int(border[-1]))))
    kept = [row for part in parts for row in part.rows.tolist()]
    return RefTicket((kept, offsets.tolist()), parts)


def join(parts: list[TableBatch]) -> TableBatch:
    """Several batches' parts of one table, one after the other; `at` is of none of them."""
    lengths = np.concatenate([part.lengths for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    return TableBatch(rows, np.repeat(np.arange(len(lengths)), lengths), lengths, slice(0, 0))


def pool(part: TableBatch, pooling: str, x: F32, w: F32) -> F32:
    """Pooled bags of the values `x` and weights `w` of each index."""
    kept = part.rows >= 0
    if pooling == "none":
        return np.where(kept[:, None], fmaf(w[:, None], x, np.float32(0)), np.float32(0))
    acc = np.zeros((len(part.lengths), x.shape[1]), np.float32)
    first = np.cumsum(part.lengths) - part.lengths
    for j in range(int(part.lengths.max(initial=0))):
        # The j-th index of every bag that has one.
        bags = np.flatnonzero(part.lengths > j)
        bags = bags[kept[first[bags] + j]]
        at = first[bags] + j
        acc[bags] = fmaf(w[at][:, None], x[at], acc[bags])
    if pooling == "mean":
        filled = part.lengths > 0
        acc[filled] /= part.lengths[filled].astype(np.float32)[:, None]
    return acc


def occurrences(part: TableBatch, pooling: str, x: F32, w: F32, grad: F32) -> tuple[F32, F32, F32]:
    """Coefficient and output gradient of each index, and the gradient of its weight."""
    g = grad if pooling == "none" else grad[part.bags]
    with np.errstate(all="ignore"):
        weight_grad = lane_dot(g, x)
        if pooling == "mean":
            n = part.lengths[part.bags].astype(np.float32)
            w, weight_grad = w / n, weight_grad / n
    return w, g, np.where(part.rows >= 0, weight_grad, np.float32(0))


def row_gradients(part: TableBatch, c: F32, g: F32) -> F32:
    """Summed gradient of each unique row: blocks of 64 occurrences in input order."""
    kept = np.flatnonzero(part.rows >= 0)
    # Stable: a row's places stay in input order.
    order = kept[np.argsort(part.rows[kept], kind="stable")]
    counts = np.unique(part.rows[kept], return_counts=True)[1]
    first = np.cumsum(counts) - counts
    total = np.zeros((len(counts), g.shape[1]), np.float32)
    longest = int(counts.max(initial=0))
    for start in range(0, longest, BLOCK):
        partial = np.zeros_like(total)
        for j in range(start, min(start + BLOCK, longest)):
            who = np.flatnonzero(counts > j)
            at = order[first[who] + j]
            partial[who] = fmaf(c[at][:, None], g[at], partial[who])
        more = counts > start
        with np.errstate(all="ignore"):
            total[more] = partial[more] if start == 0 else total[more] + partial[more]
    return total
