"""Optimizers, their states and weight decay: section 5 of `docs/numerics.md`, many rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import storable
from .power import power
from .rounding import F32, fmaf, lane_dot

Coefficients = dict[str, np.float32]

#: What each optimizer keeps for a row, in order: names, and whether that is a value an element.
STATES: dict[str, tuple[tuple[str, bool], ...]] = {
    "sgd": (),
    "sgd_momentum": (("momentum", True),),
    "adagrad": (("sum", True),),
    "rowwise_adagrad": (("sum", False),),
    "adam": (("exp_avg", True), ("exp_avg_sq", True)),
    "rowwise_adam": (("exp_avg", True), ("exp_avg_sq", False)),
    "lamb": (("exp_avg", True), ("exp_avg_sq", True)),
    "ftrl": (("z", True), ("n", True)),
    "Lion": (("exp_avg", True),),
}
#: Of these, the ones that the registry does not have.
OWN = ("Lion",)  # examples/lion.h
#: The states that start at `initial_accumulator_value`; all others start at zero.
STARTED = {"adagrad": "sum", "rowwise_adagrad": "sum", "ftrl": "n"}
_PARAMETERS = ("momentum", "eps", "lr_decay", "lr_power", "l1", "l2", "beta")


@dataclass(frozen=True)
class Rule:
    """An optimizer with its parameters as they are now, in double precision."""

    kind: str
    parameters: Mapping[str, float]
    mode: str = "none"
    start: float = 0.0
    precisions: Mapping[str, str] = field(default_factory=dict)

    def precision(self, state: str) -> str:
        """Storage format of one of the states."""
        return self.precisions.get(state, "fp32")


def rule_of(optimizer: Any) -> Rule:
    """The rule of one of the package's optimizers."""
    names = {"SGD": "sgd", "RowwiseAdagrad": "rowwise_adagrad", "RowwiseAdam": "rowwise_adam"}
    name = type(optimizer).__name__
    own = getattr(optimizer, "own_parameters", None)  # of the user's own
    kind = names.get(name, name.lower()) if own is None else optimizer.kind
    given = {key: getattr(optimizer, key, None) for key in ("lr", "weight_decay", *_PARAMETERS)}
    parameters = {key: float(value) for key, value in given.items() if value is not None}
    parameters |= own or {}
    if hasattr(optimizer, "betas"):
        parameters["beta1"], parameters["beta2"] = optimizer.betas
    if kind == "sgd" and parameters.get("momentum"):
        kind = "sgd_momentum"
    precisions = {state.name: state.precision for state in getattr(optimizer, "states", ())}
    start = getattr(optimizer, "initial_accumulator_value", 0.0)
    return Rule(kind, parameters, optimizer.weight_decay_mode, float(start), precisions)


def initial_states(rule: Rule, rows: int, dim: int) -> list[F32]:
    """States of a table before any update."""
    return [
        np.full(
            (rows, dim) if element else rows,
            rule.start if STARTED.get(rule.kind) == name else 0.0,
            np.float32,
        )
        for name, element in STATES[rule.kind]
    ]


def power_of(x: float, n: int) -> float:
    """`x` to a whole power, by squaring in double precision."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result


def coefficients(rule: Rule, t: int) -> Coefficients:
    """What update number `t` (from 1) reads: computed in double precision, rounded once."""
    p = rule.parameters
    c: dict[str, float] = {
        key: p[key] for key in ("eps", "momentum", "l1", "l2", "beta") if key in p
    }
    rate = p["lr"]
    if rule.kind == "adagrad":
        rate = rate / (1.0 + (t - 1) * p["lr_decay"])
    if "beta1" in p:
        first, second = 1.0 - power_of(p["beta1"], t), 1.0 - power_of(p["beta2"], t)
        c |= {"first": 1.0 - p["beta1"], "second": 1.0 - p["beta2"]}
        c |= {"first_scale": 1.0 / first, "second_scale": 1.0 / math.sqrt(second)}
        if rule.kind not in ("lamb", "Lion"):
            rate = rate * math.sqrt(second) / first
    if "lr_power" in p:
        c["power"] = -p["lr_power"]
    with np.errstate(over="ignore"):
        rounded = {key: np.float32(value) for key, value in c.items()} | {"rate": np.float32(rate)}
        decay = np.float32(p.get("weight_decay", 0.0))
        rounded["pull"] = decay if rule.mode == "decoupled" else np.float32(0)
        decoupled = rule.mode == "decoupled"
        rounded["decay"] = -(np.float32(p["lr"]) * decay) if decoupled else decay
    return rounded


# ---- the steps ----------------------------------------------------------------------------------
# Each takes and returns weights and states of many rows; a state is (rows, D) or (rows,).

Step = Callable[[Coefficients, F32, F32, Sequence[F32]], tuple[F32, list[F32]]]


def _mean_of_squares(g: F32) -> F32:
    return lane_dot(g, g) / np.float32(g.shape[1])


def _moments(c: Coefficients, g: F32, m: F32, v: F32) -> tuple[F32, F32]:
    return fmaf(c["first"], g - m, m), fmaf(c["second"], fmaf(g, g, -v), v)


def _sgd(c: Coefficients, w: F32, g: F32, _: Sequence[F32]) -> tuple[F32, list[F32]]:
    return fmaf(-c["rate"], g, w), []


def _sgd_momentum(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    b = fmaf(c["momentum"], s[0], g)
    return fmaf(-c["rate"], b, w), [b]


def _adagrad(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    h = fmaf(g, g, s[0])
    return fmaf(-c["rate"], g / (np.sqrt(h) + c["eps"]), w), [h]


def _rowwise_adagrad(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    h = s[0] + _mean_of_squares(g)
    scale = c["rate"] / (np.sqrt(h) + c["eps"])
    return fmaf(-scale[:, None], g, w), [h]


def _adam(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    m, v = _moments(c, g, s[0], s[1])
    return fmaf(-c["rate"], m / (np.sqrt(v) + c["eps"]), w), [m, v]


def _rowwise_adam(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    v = fmaf(c["second"], _mean_of_squares(g) - s[1], s[1])
    scale = c["rate"] / (np.sqrt(v) + c["eps"])
    m = fmaf(c["first"], g - s[0], s[0])
    return fmaf(-scale[:, None], m, w), [m, v]


def _lamb(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    m, v = _moments(c, g, s[0], s[1])
    denominator = fmaf(np.sqrt(v), c["second_scale"], c["eps"])
    r = fmaf(c["pull"], w, (m * c["first_scale"]) / denominator)
    norm_w, norm_r = np.sqrt(lane_dot(w, w)), np.sqrt(lane_dot(r, r))
    ratio = np.where((norm_w > 0) & (norm_r > 0), norm_w / norm_r, np.float32(1))
    return fmaf(-(c["rate"] * ratio)[:, None], r, w), [m, v]


def _ftrl(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    before = power(s[1], c["power"])
    n = fmaf(g, g, s[1])
    after = power(n, c["power"])
    own = -fmaf(w, (before + c["beta"]) / c["rate"] + c["l2"], np.copysign(c["l1"], w))
    old = np.where((s[0] == 0) & (w != 0), own, s[0])
    z = fmaf((before - after) / c["rate"], w, old + g)
    ridge = (after + c["beta"]) / c["rate"] + c["l2"]
    beyond = (np.copysign(c["l1"], z) - z) / ridge
    return np.where(np.abs(z) > c["l1"], beyond, np.float32(0)), [z, n]


def _lion(c: Coefficients, w: F32, g: F32, s: Sequence[F32]) -> tuple[F32, list[F32]]:
    change = g - s[0]
    mixed = fmaf(c["first"], change, s[0])
    step = np.where(mixed > 0, c["rate"], np.where(mixed < 0, -c["rate"], np.float32(0)))
    return w - step, [fmaf(c["second"], change, s[0])]


STEPS: dict[str, Step] = {
    "sgd": _sgd,
    "sgd_momentum": _sgd_momentum,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "rowwise_adam": _rowwise_adam,
    "lamb": _lamb,
    "ftrl": _ftrl,
    "Lion": _lion,
}


def step(rule: Rule, t: int, w: F32, g: F32, states: Sequence[F32]) -> tuple[F32, list[F32]]:
    """Weight decay and the optimizer's step number `t`; nothing is changed in place."""
    c, states = coefficients(rule, t), list(states)
    with np.errstate(all="ignore"):
        if rule.mode == "l2":
            g = fmaf(c["decay"], w, g)
        elif rule.mode == "decoupled" and rule.kind != "lamb":
            w = fmaf(c["decay"], w, w)
            if rule.kind == "ftrl":  # whose weight follows from z
                states[0] = fmaf(c["decay"], states[0], states[0])
        return STEPS[rule.kind](c, w, g, states)


@dataclass
class Updated:
    """New weights and states of some rows, and which of them may be stored."""

    w: F32
    states: list[F32]
    ok: npt.NDArray[np.bool_]


def update(rule: Rule, t: int, precision: str, w: F32, g: F32, states: Sequence[F32]) -> Updated:
    """One step, and which rows keep their bytes because something could not be stored."""
    new_w, new_states = step(rule, t, w, g, states)
    ok = storable(new_w, precision)
    for (name, _), state in zip(STATES[rule.kind], new_states, strict=True):
        columns = state if state.ndim == 2 else state[:, None]
        ok = ok & storable(columns, rule.precision(name))
    return Updated(new_w, new_states, ok)
