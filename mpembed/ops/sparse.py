"""The sparse optimizers of ``mpembed.ops``: rows of one table updated in place."""

from typing import Any

from mpembed import optim, registry
from mpembed._arguments import captures
from mpembed._arguments.arrays import BYTE, FLOAT, INDEX, begin, draw_key
from mpembed._arguments.batches import make_batch_of_one, one_bag, table_lookups
from mpembed._arguments.scalars import integer
from mpembed._bindings import kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import DTYPES, View, require
from mpembed.registry import MAX_DIM

_COMMON = """
    Parameters
    ----------
    weights : float32 tensor (E, D), or uint8 tensor (E, row_bytes)
        The table, changed in place.
    rows : int32 or int64 tensor (N,)
        Row numbers; duplicates are summed before the update, in input order.
    grads : float32 tensor (N, D)
        As `rows`, it shares no memory with what is changed.
    {state}precision : str
        Format of `weights`.
    dim : int, optional
        D; needed where `weights` are packed bytes.
    lr, {eps}weight_decay : float
    weight_decay_mode : str
        ``"none"``, ``"l2"`` or ``"decoupled"``.
    rounding, seed, step
        As in `quantize`, for formats that round.

    Returns
    -------
    int
        Rows whose update would not be finite (or storable): they keep their values.

    Raises
    ------
    TypeError, ValueError, IndexError, BufferError
        Before anything changes.
    """


def _table(table: View, precision: str, dim: int | None) -> tuple[View, int]:
    """Return the checked table and its number of columns."""
    require(table, FLOAT | BYTE if precision == "fp32" else BYTE, 2, writable=True)
    if table.shape[0] < 1 or table.shape[1] < 1:
        raise ValueError(f"weights must not be empty, got shape {table.shape}")
    if dim is not None:
        dim = integer("dim", dim, 1, MAX_DIM)
    if table.dtype == "float32":
        dim = integer("columns of weights", table.shape[1], 1, MAX_DIM) if dim is None else dim
        require(table, FLOAT, 2, (table.shape[0], dim))
        return table, dim
    if dim is None:
        raise ValueError("dim must be given where weights are packed bytes")
    require(table, BYTE, 2, (table.shape[0], registry.row_bytes(precision, dim)))
    return table, dim


def _state(
    state: Any, optimizer: optim.Optimizer, rows: int, dim: int, on: Stream
) -> tuple[View | None, int]:
    """Return the checked optimizer state and its format."""
    if optimizer.state_shape == registry.STATE_NONE:
        return None, registry.FORMATS["fp32"]
    checked = view(state, "state", on)
    if optimizer.state_shape == registry.STATE_ROW:
        require(checked, FLOAT, 1, (rows,), writable=True)
        return checked, registry.FORMATS["fp32"]
    require(checked, FLOAT | DTYPES["uint16"] | DTYPES["bfloat16"], 2, (rows, dim), writable=True)
    return checked, registry.FORMATS["fp32" if checked.dtype == "float32" else "bf16"]


def _apply(
    optimizer: optim.Optimizer,
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any,
    *,
    precision: str,
    dim: int | None,
    rounding: str,
    seed: int,
    step: int,
    stream: Any,
) -> int:
    fmt = registry.choose("precision", precision, registry.FORMATS)
    mode = registry.choose("rounding", rounding, registry.ROUNDINGS)
    seed, step = draw_key(seed, step)
    on, source = begin(weights, "weights", stream, captures.waits(f"{optimizer.name}_"))
    table, columns = _table(source, precision, dim)
    ids = view(rows, "rows", on)
    require(ids, INDEX, 1)
    gradient = view(grads, "grads", on)
    require(gradient, FLOAT, 2, (ids.size, columns))
    stored, state_format = _state(state, optimizer, table.shape[0], columns, on)
    written = [table] if stored is None else [table, stored]
    kernels.refuse_overlap(written, [ids, gradient])
    batch = make_batch_of_one(rows, one_bag(ids, on), None, on)
    group = kernels.Group(kernels.StepCounter(on, step), 0, 1, columns, mode, seed)
    pooling = registry.POOLINGS["none"]
    group.add_table("weights", table, stored, None, fmt, 0, pooling, state_format, 0)
    group.upload_descriptors(on)
    lookups = table_lookups(group, table.shape[0], batch, on, "rows")
    lookups.dedup(group, on)
    workspace = kernels.CallWorkspace(group, lookups, gradient, False, on)
    errors = kernels.DeviceErrors(on, 1)
    group.update(lookups, workspace, optimizer.kernel_settings(), errors, on)
    return sum(count for _, count, _ in errors.pop(on)[1])


def sgd_(
    weights: Any,
    rows: Any,
    grads: Any,
    *,
    lr: float,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "none",
    precision: str = "fp32",
    dim: int | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    step: int = 0,
    stream: Any = None,
) -> int:
    """Sparse SGD in place: ``w -= lr * g``."""
    optimizer = optim.SGD(lr, weight_decay=weight_decay, weight_decay_mode=weight_decay_mode)
    return _apply(
        optimizer,
        weights,
        rows,
        grads,
        None,
        precision=precision,
        dim=dim,
        rounding=rounding,
        seed=seed,
        step=step,
        stream=stream,
    )


def adagrad_(
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any,
    *,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "none",
    precision: str = "fp32",
    dim: int | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    step: int = 0,
    stream: Any = None,
) -> int:
    """Sparse Adagrad in place: ``h += g^2; w -= lr * g / (sqrt(h) + eps)``."""
    optimizer = optim.Adagrad(
        lr, eps=eps, weight_decay=weight_decay, weight_decay_mode=weight_decay_mode
    )
    return _apply(
        optimizer,
        weights,
        rows,
        grads,
        state,
        precision=precision,
        dim=dim,
        rounding=rounding,
        seed=seed,
        step=step,
        stream=stream,
    )


def rowwise_adagrad_(
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any,
    *,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "none",
    precision: str = "fp32",
    dim: int | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    step: int = 0,
    stream: Any = None,
) -> int:
    """Sparse rowwise Adagrad in place: ``h += mean(g^2); w -= lr / (sqrt(h) + eps) * g``."""
    optimizer = optim.RowwiseAdagrad(
        lr, eps=eps, weight_decay=weight_decay, weight_decay_mode=weight_decay_mode
    )
    return _apply(
        optimizer,
        weights,
        rows,
        grads,
        state,
        precision=precision,
        dim=dim,
        rounding=rounding,
        seed=seed,
        step=step,
        stream=stream,
    )


sgd_.__doc__ = f"{sgd_.__doc__}\n{_COMMON.format(state='', eps='')}"
adagrad_.__doc__ = "{}\n{}".format(
    adagrad_.__doc__,
    _COMMON.format(
        state="state : float32, uint16 or bfloat16 tensor (E, D)\n"
        "        Sums of squares, changed in place; uint16 and bfloat16 hold BF16.\n    ",
        eps="eps, ",
    ),
)
rowwise_adagrad_.__doc__ = "{}\n{}".format(
    rowwise_adagrad_.__doc__,
    _COMMON.format(
        state="state : float32 tensor (E,)\n        Sums of mean squares, changed in place.\n    ",
        eps="eps, ",
    ),
)
