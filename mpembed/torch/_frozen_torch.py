"""Lookups of frozen modules by PyTorch's own operators: a saved program needs no mpembed.

Its quantized operators sum alone, so everything else is said with weights: an index that adds
nothing has weight 0, and a mean is the sum divided by a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mpembed._collection.export import TORCH_CODES_A_BYTE
from mpembed.torch._frozen_lookup import NO_PADDING, TableFormat

#: The formats whose rows are elements of a type.
PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_tracing = torch._C._is_tracing
_BITS = {"int8": "byte", "int4": "4bit", "int2": "2bit"}


def _add_shapes() -> torch.library.Library:
    """Tell compilers the shapes of the operators of 4 and 2 bits, where PyTorch does not."""
    library = torch.library.Library("quantized", "IMPL")
    for precision, codes in TORCH_CODES_A_BYTE.items():
        name = f"embedding_bag_{_BITS[precision]}_rowwise_offsets"
        operator = getattr(torch.ops.quantized, name).default
        if operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.Meta):
            continue

        def shape(
            weight: Tensor,
            indices: Tensor,
            offsets: Tensor,
            scale_grad_by_freq: bool = False,
            mode: int = 0,
            pruned_weights: bool = False,
            per_sample_weights: Tensor | None = None,
            compressed_indices_mapping: Tensor | None = None,
            include_last_offset: bool = False,
            codes: int = codes,
        ) -> Tensor:
            bags = offsets.shape[0] - 1 if include_last_offset else offsets.shape[0]
            width = (weight.shape[1] - 4) * codes  # FP16 scale and bias at the end
            return weight.new_empty((bags, width), dtype=torch.float32)

        library.impl(name, shape, "Meta")
    return library


_library = _add_shapes()


def _refuse_tracing() -> None:
    if not torch.compiler.is_compiling() and _tracing():
        raise RuntimeError(
            "torch.jit.trace cannot store this lookup by PyTorch's operators: use torch.export"
        )


def _elements(rows: Tensor, precision: str) -> Tensor:
    """Return the elements (E, D) of a plain format, which share the memory of the rows."""
    _refuse_tracing()  # does not know a view of another type
    return rows.view(dtype=PLAIN[precision])


def values(rows: Tensor, precision: str) -> Tensor:
    """Return the values (E, D) of a table in FP32."""
    if precision in PLAIN:
        return _elements(rows, precision).to(torch.float32)
    unpack = getattr(torch.ops.quantized, f"embedding_bag_{_BITS[precision]}_unpack")
    found: Tensor = unpack(rows)
    return found


def lookup(
    rows: Sequence[Tensor],
    tables: Sequence[TableFormat],
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    order: Sequence[int],
    padding_idx: int,
    drop: bool,
) -> Tensor:
    """Return what the operator ``mpembed::frozen_lookup`` does, up to rounding of sums."""
    if len(tables) == 1 and not order:
        return _of_table(rows[0], tables[0], indices, offsets, weights, padding_idx, drop)
    keys, places = (order[0], order[1:]) if order else (len(tables), range(len(tables)))
    batch_size = (offsets.shape[0] - 1) // keys
    parts = _features(indices, offsets, weights, keys, batch_size)
    levels = len(places) // len(tables)
    blocks = [
        [
            _of_table(one, table, *parts[place], padding_idx, drop)
            if place >= 0
            else one.new_zeros((batch_size, table.dim), dtype=torch.float32)
            for one, table, place in zip(rows, tables, places[level::levels], strict=True)
        ]
        for level in range(levels)
    ]
    return torch.cat([torch.cat(block, dim=1) for block in blocks], dim=0)


def _features(
    indices: Tensor, offsets: Tensor, weights: Tensor | None, keys: int, batch_size: int
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return indices, offsets and weights of each feature of a batch."""
    _refuse_tracing()  # would store where the features of this batch begin
    begins = torch.arange(keys + 1, device=offsets.device) * batch_size
    ends = offsets[begins].tolist()
    parts = []
    for k in range(keys):
        first, count = ends[k], ends[k + 1] - ends[k]
        _expect(first >= 0, "offsets must not be negative")
        _expect(count >= 0, "offsets must not decrease")
        _expect(first + count <= indices.shape[0], "offsets must not exceed the number of indices")
        own = offsets[k * batch_size : (k + 1) * batch_size + 1] - first
        scaled = None if weights is None else weights.narrow(0, first, count)
        parts.append((indices.narrow(0, first, count), own, scaled))
    return parts


def _expect(condition: Any, message: str) -> None:
    """Raise ValueError; in compiled code, promise the compiler what it cannot know."""
    if torch.compiler.is_compiling():
        torch._check(condition)  # strict export takes no message
    elif not condition:
        raise ValueError(message)


def _of_table(
    rows: Tensor,
    table: TableFormat,
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    padding_idx: int,
    drop: bool,
) -> Tensor:
    """Look up in one table; `offsets` have their end."""
    counted = None if padding_idx == NO_PADDING else indices != padding_idx
    used = counted
    if drop:
        valid = (indices >= 0) & (indices < rows.shape[0])
        indices = torch.where(valid, indices, 0)
        used = valid if used is None else used & valid
    if used is not None:
        weights = torch.where(used, 1.0 if weights is None else weights, 0.0).to(torch.float32)
    if table.pooling == "none":
        return _unpooled(rows, table.precision, indices, weights)
    total = _sum(rows, table.precision, indices, offsets, weights)
    if table.pooling == "sum":
        return total
    if counted is not None:
        offsets = functional.pad(counted.cumsum(0), (1, 0))[offsets]
    count = (offsets[1:] - offsets[:-1]).clamp(min=1).to(torch.float32)
    return total / count.unsqueeze(1)


def _unpooled(rows: Tensor, precision: str, indices: Tensor, weights: Tensor | None) -> Tensor:
    if precision in PLAIN:
        found = functional.embedding(indices, _elements(rows, precision)).to(torch.float32)
        return found if weights is None else found * weights.unsqueeze(1)
    begins = torch.arange(indices.shape[0], dtype=indices.dtype, device=indices.device)
    return _quantized(rows, precision, indices, begins, weights)


def _sum(
    rows: Tensor, precision: str, indices: Tensor, offsets: Tensor, weights: Tensor | None
) -> Tensor:
    begins = offsets[:-1].to(indices.dtype)
    if precision not in PLAIN:
        return _quantized(rows, precision, indices, begins, weights)
    table = _elements(rows, precision)
    if precision != "fp32":  # PyTorch would round the sums to this type
        table = functional.embedding(indices, table).to(torch.float32)
        indices = torch.arange(indices.shape[0], dtype=indices.dtype, device=indices.device)
    return functional.embedding_bag(indices, table, begins, mode="sum", per_sample_weights=weights)


def _quantized(
    rows: Tensor, precision: str, indices: Tensor, begins: Tensor, weights: Tensor | None
) -> Tensor:
    """Sum bags that begin at `begins`; the last one ends with the indices."""
    operator = getattr(torch.ops.quantized, f"embedding_bag_{_BITS[precision]}_rowwise_offsets")
    found: Tensor = operator(
        rows, indices.contiguous(), begins.contiguous(), per_sample_weights=weights
    )
    return found
