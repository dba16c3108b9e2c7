"""Outputs of a forward and their gradients: a matrix, or one a table where one is unpooled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpembed._arguments.arrays import FLOAT
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import View, require
from mpembed.config import TableConfig

Output = Any  # an array, or a dict of table name -> array


def pooled_width(configs: Sequence[TableConfig]) -> int | None:
    """Return the columns of the pooled output, or None where some table is unpooled."""
    if any(config.pooling == "none" for config in configs):
        return None
    return sum(config.embedding_dim for config in configs)


def unpooled_shapes(
    configs: Sequence[TableConfig], batch_size: int, counts: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Return the shape of each table's output where some table is unpooled."""
    return {
        config.name: (count if config.pooling == "none" else batch_size, config.embedding_dim)
        for config, count in zip(configs, counts, strict=True)
    }


def matrix_views(
    values: Any,
    name: str,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    on: Stream,
    *,
    writable: bool,
) -> View | dict[str, View]:
    """Check an output or gradient against its shape (a dict where some table is unpooled)."""
    if isinstance(shapes, dict):
        if not isinstance(values, Mapping) or set(values) != set(shapes):
            raise ValueError(
                f"{name} must be a dict with the tables {list(shapes)}, since one is unpooled"
            )
        return {
            key: _matrix(values[key], f"{name} of table {key!r}", shape, on, writable)
            for key, shape in shapes.items()
        }
    return _matrix(values, name, shapes, on, writable)


def _matrix(value: Any, name: str, shape: tuple[int, int], on: Stream, writable: bool) -> View:
    checked = view(value, name, on)
    require(checked, FLOAT, 2, shape, writable=writable)
    return checked


def allocate_output(shapes: tuple[int, int] | dict[str, tuple[int, int]], on: Stream) -> Output:
    """Return new arrays of these shapes."""
    if isinstance(shapes, dict):
        return {name: array_ops.result(shape, np.float32, on) for name, shape in shapes.items()}
    return array_ops.result(shapes, np.float32, on)


def output_views(
    out: Any,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    batch: kernels.Batch,
    on: Stream,
) -> tuple[Output, View | dict[str, View]]:
    """Return a forward's `out` or new arrays, and their views, which may not overlap the batch."""
    if out is None:
        out = allocate_output(shapes, on)
        return out, matrix_views(out, "out", shapes, on, writable=True)
    views = matrix_views(out, "out", shapes, on, writable=True)
    written = list(views.values()) if isinstance(views, dict) else [views]
    kernels.refuse_overlap(written, batch.arguments())
    return out, views
