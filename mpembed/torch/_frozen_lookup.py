"""The operators of frozen modules: pure functions of tensors, for every compiler and in a graph.

A saved program names them, so a process that loads one imports ``mpembed.torch`` first. What is
not a tensor goes through ``tables``, the JSON text of (name, precision, dimension, pooling) of each
table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpembed import ops
from mpembed._arguments import captures
from mpembed._arguments.arrays import begin
from mpembed._collection.packed import PackedTables
from mpembed.config import TableConfig
from mpembed.torch._batch import PreparedBatch, prepare
from mpembed.torch._exchange import current_stream, tensor_of

#: The `padding_idx` of a lookup without one.
NO_PADDING = -1


class TableFormat(NamedTuple):
    """A table of an operator's ``tables``."""

    name: str
    precision: str
    dim: int
    pooling: str


def encode_tables(tables: Sequence[TableConfig]) -> str:
    """Return the text by which operators know tables."""
    return json.dumps([(t.name, t.precision, t.embedding_dim, t.pooling) for t in tables])


@lru_cache(maxsize=256)
def decode_tables(tables: str) -> tuple[TableFormat, ...]:
    """Return the tables of a text."""
    return tuple(TableFormat(*one) for one in json.loads(tables))


@lru_cache(maxsize=256)
def _configs(tables: str, num_rows: tuple[int, ...]) -> tuple[TableConfig, ...]:
    pairs = zip(decode_tables(tables), num_rows, strict=True)
    return tuple(TableConfig(t.name, rows, t.dim, t.precision, t.pooling) for t, rows in pairs)


def _packed(rows: Sequence[Tensor], tables: str, *, drop: bool) -> PackedTables:
    rows = [one.detach().contiguous() for one in rows]
    on, _ = begin(
        rows[0], "rows", current_stream(rows[0].device), captures.waits("a frozen lookup")
    )
    configs = _configs(tables, tuple(one.shape[0] for one in rows))
    return PackedTables(configs, rows, on, drop=drop)


def _prepared(
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    order: Sequence[int] | None,
    padding_idx: int,
) -> PreparedBatch:
    """Put features into the tables' order; take padding out."""
    weights = None if weights is None else weights.detach()
    padding = None if padding_idx == NO_PADDING else padding_idx
    return prepare(indices, offsets, weights, order or (), padding)


@torch.library.custom_op(
    "mpembed::frozen_lookup",
    mutates_args=(),
    schema="(Tensor[] rows, Tensor indices, Tensor offsets, Tensor? weights, str tables, "
    "int[]? order, int padding_idx, bool drop) -> Tensor",
)
def frozen_lookup(
    rows: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    tables: str,
    order: Sequence[int] | None,
    padding_idx: int,
    drop: bool,
) -> Tensor:
    """Look up a table-major batch in packed rows, or features in `order` (`_feature_order`)."""
    batch = _prepared(indices, offsets, weights, order, padding_idx)
    packed = _packed(rows, tables, drop=drop)
    return tensor_of(packed.lookup(batch.indices, batch.offsets, batch.weights))


@frozen_lookup.register_fake
def _(
    rows: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    tables: str,
    order: Sequence[int] | None,
    *_: Any,
) -> Tensor:
    known = decode_tables(tables)
    width = sum(table.dim for table in known)
    if known[0].pooling == "none":
        return rows[0].new_empty((indices.shape[0], width), dtype=torch.float32)
    bags = offsets.shape[0] - 1
    if order:
        bags = bags // order[0] * (len(order) - 1)
    return rows[0].new_empty((bags // len(known), width), dtype=torch.float32)


@torch.library.custom_op(
    "mpembed::frozen_weight_grad",
    mutates_args=(),
    schema="(Tensor grad, Tensor[] rows, Tensor indices, Tensor offsets, str tables, int[]? order, "
    "int padding_idx, bool drop) -> Tensor",
)
def frozen_weight_grad(
    grad: Tensor,
    rows: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor,
    tables: str,
    order: Sequence[int] | None,
    padding_idx: int,
    drop: bool,
) -> Tensor:
    """Return the gradient of a lookup's per-sample weights from that of its output."""
    batch = _prepared(indices, offsets, None, order, padding_idx)
    grad = grad.detach().to(torch.float32).contiguous()
    packed = _packed(rows, tables, drop=drop)
    found = tensor_of(packed.weight_grad(grad, batch.indices, batch.offsets))
    return batch.weight_grad(found)


@frozen_weight_grad.register_fake
def _(grad: Tensor, rows: Sequence[Tensor], indices: Tensor, *_: Any) -> Tensor:
    return grad.new_empty((indices.shape[0],), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, indices, offsets, weights, *ctx.rest = inputs
    ctx.weighted, ctx.count = weights is not None, len(rows)
    ctx.save_for_backward(indices, offsets, *rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight_grad = None
    if ctx.weighted:
        indices, offsets, *rows = ctx.saved_tensors
        weight_grad = torch.ops.mpembed.frozen_weight_grad(grad, rows, indices, offsets, *ctx.rest)
    return [None] * ctx.count, None, None, weight_grad, None, None, None, None


frozen_lookup.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op(
    "mpembed::frozen_rows",
    mutates_args=(),
    schema="(Tensor rows, str precision, int dim) -> Tensor",
)
def frozen_rows(rows: Tensor, precision: str, dim: int) -> Tensor:
    """Return the values (E, D) of packed rows."""
    rows = rows.detach().contiguous()
    return tensor_of(ops.dequantize(rows, precision, dim, stream=current_stream(rows.device)))


@frozen_rows.register_fake
def _(rows: Tensor, precision: str, dim: int) -> Tensor:
    return rows.new_empty((rows.shape[0], dim), dtype=torch.float32)
