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


def export(
    values: Any, name: str, tables: Sequence[str] | None, on: Stream
) -> View | dict[str, View]:
    """Return the view of an output or gradient, of which nothing is checked yet.

    A dict of views where some table is unpooled: `tables` are then the names of all.
    """
    if tables is None:
        return view(values, name, on)
    if not isinstance(values, Mapping) or set(values) != set(tables):
        raise ValueError(
            f"{name} must be a dict with the tables {list(tables)}, since one is unpooled"
        )
    return {key: view(values[key], f"{name} of table {key!r}", on) for key in tables}


def each_view(views: View | dict[str, View] | None) -> list[View]:
    """Return the views that `export` has returned as a list."""
    if views is None:
        return []
    return list(views.values()) if isinstance(views, dict) else [views]


def require_matrices(
    views: View | dict[str, View],
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    *,
    writable: bool,
) -> None:
    """Check an output or gradient against its shape (a dict where some table is unpooled)."""
    if isinstance(views, dict) and isinstance(shapes, dict):
        for name, shape in shapes.items():
            require(views[name], FLOAT, 2, shape, writable=writable)
    elif isinstance(views, View) and isinstance(shapes, tuple):
        require(views, FLOAT, 2, shapes, writable=writable)


def allocate_output(shapes: tuple[int, int] | dict[str, tuple[int, int]], on: Stream) -> Output:
    """Return new arrays of these shapes."""
    if isinstance(shapes, dict):
        return {name: array_ops.result(shape, np.float32, on) for name, shape in shapes.items()}
    return array_ops.result(shapes, np.float32, on)


def output_views(
    out: Any,
    exported: View | dict[str, View] | None,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    batch: kernels.Batch,
    on: Stream,
) -> tuple[Output, View | dict[str, View]]:
    """Return a forward's `out` or new arrays, and their views, which may not overlap the batch.

    `exported` are the views of `out`, None where there is none.
    """
    if exported is None:
        made = allocate_output(shapes, on)
        return made, export(made, "out", list(shapes) if isinstance(shapes, dict) else None, on)
    require_matrices(exported, shapes, writable=True)
    kernels.refuse_overlap(each_view(exported), batch.arguments())
    return out, exported
