"""Optimizers and weight decay, section 5 of `docs/numerics.md`, for many rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import FORMATS, bf16_codes, bf16_values, storable
from .rounding import DOMAIN_STATE, F32, draws16, fmaf, lane_dot


def kind(optimizer: Any) -> str:
    """Name of an optimizer from its class."""
    names = {"SGD": "sgd", "Adagrad": "adagrad", "RowwiseAdagrad": "rowwise_adagrad"}
    return names[type(optimizer).__name__]


def initial_state(optimizer: Any, rows: int, dim: int) -> npt.NDArray[Any] | None:
    """State array of a table as it starts; None where the optimizer has no state."""
    name = kind(optimizer)
    if name == "sgd":
        return None
    start = np.float32(optimizer.initial_accumulator_value)
    if name == "rowwise_adagrad":
        return np.full(rows, start, np.float32)
    full = np.full((rows, dim), start, np.float32)
    return bf16_codes(full, None) if optimizer.state_precision == "bf16" else full


@dataclass
class Updated:
    """New weights and state of some rows, and which of them may be stored."""

    w: F32
    state: npt.NDArray[Any] | None
    ok: npt.NDArray[np.bool_]


def decay(optimizer: Any, w: F32, g: F32) -> tuple[F32, F32]:
    """Weights and gradients after weight decay."""
    wd, lr = np.float32(optimizer.weight_decay), np.float32(optimizer.lr)
    if optimizer.weight_decay_mode == "l2":
        return w, fmaf(wd, w, g)
    if optimizer.weight_decay_mode == "decoupled":
        return fmaf(-(lr * wd), w, w), g
    return w, g


def update(
    optimizer: Any,
    precision: str,
    w: F32,
    g: F32,
    state: npt.NDArray[Any] | None,
    *,
    rounding: str,
    seed: int,
    step: int,
    table: int,
    rows: npt.NDArray[np.int64],
) -> Updated:
    """One update of each row of `w` with gradient `g`; nothing is changed in place."""
    name, lr = kind(optimizer), np.float32(optimizer.lr)
    with np.errstate(all="ignore"):
        w, g = decay(optimizer, w, g)
        if name == "sgd":
            w = fmaf(-lr, g, w)
            return Updated(w, None, storable(w, precision))
        assert state is not None
        eps = np.float32(optimizer.eps)
        if name == "rowwise_adagrad":
            h = state + lane_dot(g, g) / np.float32(w.shape[1])
            w = fmaf(-(lr / (np.sqrt(h) + eps))[:, None], g, w)
            return Updated(w, h, storable(w, precision) & np.isfinite(h))
        half = optimizer.state_precision == "bf16"
        h = fmaf(g, g, bf16_values(state) if half else state)
        w = fmaf(-lr, g / (np.sqrt(h) + eps), w)
        limit = np.float32(FORMATS["bf16" if half else "fp32"].limit)
        ok = storable(w, precision) & (np.abs(h) <= limit).all(axis=1)
        if not half:
            return Updated(w, h, ok)
        r = None
        if rounding == "stochastic":
            r = draws16(seed, DOMAIN_STATE, table, rows, w.shape[1], step)
        return Updated(w, bf16_codes(h, r), ok)
