"""What the sparse optimizers of ``mpembed.ops`` share: keywords, docstrings, one update."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from mpembed import registry
from mpembed._arguments import captures
from mpembed._arguments.arrays import (
    BYTE,
    FLOAT,
    INDEX,
    OUTPUT,
    begin,
    draw_key,
    refuse_values,
)
from mpembed._arguments.batches import single_bag, table_lookups
from mpembed._arguments.scalars import integer
from mpembed._bindings import kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import refuse_moved, view
from mpembed._bindings.view import DTYPES, View, require
from mpembed.optim import Optimizer
from mpembed.registry import MAX_DIM

_STATE_KINDS = FLOAT | DTYPES["uint16"] | DTYPES["bfloat16"]
_MAX_UPDATES = 2**63 - 1


class Options(TypedDict, total=False):
    """Keywords of every sparse optimizer."""

    weight_decay: float
    weight_decay_mode: str
    precision: str
    dim: int | None
    rounding: str
    seed: int
    step: int
    stream: Any


_DEFAULTS = {
    **{"weight_decay": 0.0, "weight_decay_mode": "none", "precision": "fp32", "dim": None},
    **{"rounding": registry.DEFAULT_ROUNDING, "seed": 0, "step": 0, "stream": None},
}
_HEAD = """{summary}

Parameters
----------
weights : float32 tensor (E, D), or uint8 tensor (E, row_bytes)
    The table, changed in place.
rows : int32 or int64 tensor (N,)
    Row numbers; duplicates are summed before the update, in input order.
grads : float32, float16 or bfloat16 tensor (N, D)
    As `rows`, it shares no memory with what is changed.
"""
_STATE = """{name} : float32, uint16 or bfloat16 tensor {shape}
    {meaning}, changed in place; uint16 and bfloat16 hold BF16.
"""
_UPDATES = """updates : int
    Number of this update, from 1 on.
"""
_TAIL = """{own}
    As in `{optimizer}`.
weight_decay : float
weight_decay_mode : str
    ``"none"``, ``"l2"`` or ``"decoupled"``.
precision : str
    Format of `weights`.
dim : int, optional
    D; needed where `weights` are packed bytes.
rounding : str
    As in `EmbeddingBagCollection`, for formats that round.
seed, step
    As in `quantize`.
stream
    As in `quantize`.

Returns
-------
int
    Rows whose update would not be finite (or storable): they keep their values.

Raises
------
TypeError, ValueError, IndexError, BufferError
    Before anything changes.
"""
_MEANINGS = {
    "momentum_buffer": "Momentum; None where `momentum` is 0",
    "sum": "Sums of squares",
    "exp_avg": "First moments",
    "exp_avg_sq": "Second moments",
    "z": "Sums of gradients, less what the rates have moved",
    "n": "Sums of squares",
}
F = TypeVar("F", bound=Callable[..., int])


def documented(optimizer: type[Optimizer], **states: str) -> Callable[[F], F]:
    """Write an operator's docstring; `states` are the shapes of its states by their meanings."""

    def write(function: F) -> F:
        signature = inspect.signature(function)
        names = list(signature.parameters)
        arguments = names[3 : 3 + len(states)]
        own = [name for name in names[3 + len(states) : -1] if name != "updates"]
        text = _HEAD.format(summary=function.__doc__)
        for name, (meaning, shape) in zip(arguments, states.items(), strict=True):
            text += _STATE.format(name=name, shape=shape, meaning=_MEANINGS[meaning])
        text += _UPDATES if "updates" in names else ""
        function.__doc__ = text + _TAIL.format(own=", ".join(own), optimizer=optimizer.__name__)
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in _DEFAULTS.items()
        ]
        parameters = [*list(signature.parameters.values())[:-1], *options]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return write


def _table(table: View, precision: str, dim: int | None) -> tuple[View, int]:
    """Return the checked table and its number of columns."""
    if precision != "fp32":
        refuse_values(table)
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


def _state(name: str, array: Any, shape: tuple[int, ...], on: Stream) -> View:
    """Return a checked state."""
    checked = view(array, name, on)
    require(checked, _STATE_KINDS, len(shape), shape, writable=True)
    return checked


def _place(state: View) -> tuple[int, int, int]:
    """Return a state's address, bytes a row and format."""
    fp32 = state.dtype == "float32"
    columns = state.shape[1] if state.ndim == 2 else 1
    fmt = registry.FORMATS["fp32" if fp32 else "bf16"]
    return state.address, (4 if fp32 else 2) * columns, fmt


def _settings(call: str, options: Options) -> Any:
    """Return the settings common to all optimizers; TypeError for an unknown keyword."""
    for name in options:
        if name not in _DEFAULTS:
            raise TypeError(
                f"{call}() got an unexpected keyword argument {name!r}; besides its own it takes "
                f"{', '.join(_DEFAULTS)}"
            )
    return {**_DEFAULTS, **options}


def apply(
    call: str,
    optimizer: type[Optimizer],
    own: dict[str, Any],
    weights: Any,
    rows: Any,
    grads: Any,
    states: dict[str, Any],
    options: Options,
    updates: int = 1,
) -> int:
    """Check the arguments of a sparse optimizer and run its update; return the rows left out.

    `own` are the arguments of the optimizer's class, `states` the arrays by their arguments' names.
    """
    given = _settings(call, options)
    decay = {name: given[name] for name in ("weight_decay", "weight_decay_mode")}
    settings = optimizer(**own, **decay)
    precision = given["precision"]
    fmt = registry.choose("precision", precision, registry.FORMATS)
    mode = registry.choose("rounding", given["rounding"], registry.ROUNDINGS)
    seed, step = draw_key(given["seed"], given["step"])
    number = integer("updates", updates, 1, _MAX_UPDATES)
    on, source = begin(weights, "weights", given["stream"], captures.waits(call))
    table, columns = _table(source, precision, given["dim"])
    ids = view(rows, "rows", on)
    require(ids, INDEX, 1)
    gradient = view(grads, "grads", on)
    require(gradient, OUTPUT, 2, (ids.size, columns))
    shapes = {
        registry.STATE_ROW: table.shape[:1],
        registry.STATE_ELEMENT: (*table.shape[:1], columns),
    }
    stored = [
        _state(name, array, shapes[state.shape], on)
        for (name, array), state in zip(states.items(), settings.states, strict=True)
    ]
    kernels.refuse_overlap([table, *stored], [ids, gradient])
    refuse_moved([table, *stored, ids, gradient])
    batch = single_bag(ids, on)
    rules = kernels.UpdateRules(on, 1, number - 1)
    rules.set_table(0, *settings.kernel_kind(), settings.parameters())
    rules.send(on)
    group = kernels.Group(kernels.StepCounter(on, step), 0, 1, columns, mode, seed)
    group.add_table(
        "weights",
        table.shape[0],
        table.address,
        table.shape[1] * (4 if table.dtype == "float32" else 1),
        precision=fmt,
        pooling=registry.POOLINGS["none"],
        states=[_place(state) for state in stored],
    )
    group.keep_alive(table, *stored)
    group.set_optimizer(rules, 0, *settings.kernel_kind())
    group.upload_descriptors(on)
    return _update(
        group, rules, table_lookups(group, table.shape[0], batch, on, "rows"), gradient, on
    )


def _update(
    group: kernels.Group,
    rules: kernels.UpdateRules,
    lookups: kernels.GroupBatch,
    gradient: View,
    on: Stream,
) -> int:
    """Run the update of a checked batch; return the rows left out."""
    lookups.dedup(group, on)
    errors = kernels.DeviceErrors(on, 1)
    rules.begin(on)
    group.update(lookups, gradient, errors, on)
    return sum(count for _, count, _ in errors.pop(on)[1])
