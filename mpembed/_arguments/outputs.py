"""Outputs of a forward and their gradients: a matrix, or one a table where one is unpooled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpembed import registry
from mpembed._arguments.arrays import OUTPUT, OUTPUT_DTYPES
from mpembed._bindings import array_ops, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import DTYPES, View, require
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
    dtypes: int = OUTPUT,
) -> None:
    """Check an output or gradient against its shape (a dict where some table is unpooled)."""
    if isinstance(views, dict) and isinstance(shapes, dict):
        for name, shape in shapes.items():
            require(views[name], dtypes, 2, shape, writable=writable)
        require_one_dtype(views.values(), "all tables of a call have one dtype: cast one of them")
    elif isinstance(views, View) and isinstance(shapes, tuple):
        require(views, dtypes, 2, shapes, writable=writable)


def require_one_dtype(views: Iterable[View], rule: str) -> None:
    """Raise TypeError, with a rule, unless outputs or gradients are of one type."""
    first: View | None = None
    for one in views:
        if first is not None and one.dtype != first.dtype:
            raise TypeError(f"{one.name} is {one.dtype}, {first.name} is {first.dtype}; {rule}")
        first = first or one


def output_dtype(name: str | None) -> str | None:
    """Return the element type of a checked `output_dtype`, None where there is none.

    Raises
    ------
    ValueError
        If it is not the name of a format that outputs may have.
    """
    if name is None:
        return None
    registry.choose("output_dtype", name, registry.OUTPUT_FORMATS)
    return OUTPUT_DTYPES[name]


def allocate_output(
    shapes: tuple[int, int] | dict[str, tuple[int, int]], dtype: str, on: Stream
) -> Output:
    """Return new arrays of these shapes."""
    if dtype == "bfloat16" and on.device.synchronous:
        raise ValueError(
            "output_dtype 'bf16' needs out on the CPU, since NumPy has no bfloat16: pass an array "
            "of a library that has, such as torch.empty(..., dtype=torch.bfloat16)"
        )
    if isinstance(shapes, dict):
        return {name: array_ops.result(shape, dtype, on) for name, shape in shapes.items()}
    return array_ops.result(shapes, dtype, on)


def output_views(
    out: Any,
    exported: View | dict[str, View] | None,
    shapes: tuple[int, int] | dict[str, tuple[int, int]],
    dtype: str | None,
    batch: kernels.Batch,
    on: Stream,
) -> tuple[Output, View | dict[str, View]]:
    """Return a forward's `out` or new arrays, and their views, which may not overlap the batch.

    `exported` are the views of `out`, None where there is none; `dtype` is None for any type, of
    new arrays for float32.
    """
    if exported is None:
        made = allocate_output(shapes, dtype or "float32", on)
        return made, export(made, "out", list(shapes) if isinstance(shapes, dict) else None, on)
    dtypes = OUTPUT if dtype is None else DTYPES[dtype]
    require_matrices(exported, shapes, writable=True, dtypes=dtypes)
    kernels.refuse_overlap(each_view(exported), batch.arguments())
    return out, exported
