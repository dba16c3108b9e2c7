"""Adam, Adam with one second moment a row, and LAMB."""

import math
from collections.abc import Sequence
from typing import Any

from mpembed._arguments.scalars import finite
from mpembed.optim._base import Optimizer, StatePrecision, positive


def _beta(name: str, value: float) -> float:
    """Return a checked beta."""
    checked = finite(name, value)
    if not 0.0 <= checked < 1.0:
        raise ValueError(f"{name} must satisfy 0 <= beta < 1, got {checked!r}")
    return checked


class _Moments(Optimizer):
    """An optimizer with a first and a second moment, ``"exp_avg"`` and ``"exp_avg_sq"``."""

    __slots__ = ()
    squares = ("exp_avg_sq",)

    def __init__(
        self,
        lr: float,
        betas: Sequence[float],
        eps: float,
        weight_decay: float,
        weight_decay_mode: str,
        state_precision: StatePrecision,
    ) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, 0 <= beta < 1, got {betas!r}")
        first, second = (_beta(f"betas[{i}]", beta) for i, beta in enumerate(betas))
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={"betas": (first, second), "eps": positive("eps", eps)},
        )

    @property
    def betas(self) -> tuple[float, float]:
        """What is left of the two moments after a step."""
        first, second = self._settings["betas"]
        return float(first), float(second)

    @property
    def eps(self) -> float:
        """Added to the denominator."""
        return float(self._settings["eps"])

    def late_step(self, updates: int) -> float:
        """Return how long the first step of a row is after so many updates of other rows."""
        first, second = self.betas
        corrected = math.sqrt(1 - second ** (updates + 1)) / (1 - first ** (updates + 1))
        return (1 - first) / math.sqrt(1 - second) * corrected

    def _parameters(self) -> dict[str, Any]:
        first, second = self.betas
        return {**self.settings(), "beta1": first, "beta2": second}


class Adam(_Moments):
    """Adam with lazy moments, as ``torch.optim.SparseAdam``.

    ``m += (1 - beta1) * (g - m); v += (1 - beta2) * (g^2 - v);
    w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)``, m and v one value an
    element, t the number of updates of the collection. Rows that a batch does not use keep their
    moments. With ``weight_decay_mode="decoupled"`` it is AdamW.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    betas : tuple of float
        beta1 and beta2, 0 <= beta < 1.
    eps : float
        Added to the denominator; positive in float32.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the states are ``"exp_avg"`` and ``"exp_avg_sq"``.
    """

    __slots__ = ()
    _kind = "adam"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, weight_decay_mode, state_precision)


class RowwiseAdam(_Moments):
    """Adam whose second moment is one value a row, of the mean of g^2 over its columns.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    betas : tuple of float
        beta1 and beta2, 0 <= beta < 1.
    eps : float
        Added to the denominator; positive in float32.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the states are ``"exp_avg"`` and ``"exp_avg_sq"``.
    """

    __slots__ = ()
    _kind = "rowwise_adam"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, weight_decay_mode, state_precision)


class Lamb(_Moments):
    """LAMB with a trust ratio a row.

    The direction r is Adam's, plus ``weight_decay * w`` with decoupled decay;
    ``w -= lr * |w| / |r| * r``, where the ratio is 1 if either norm is zero.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    betas : tuple of float
        beta1 and beta2, 0 <= beta < 1.
    eps : float
        Added to the denominator; positive in float32.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the states are ``"exp_avg"`` and ``"exp_avg_sq"``.
    """

    __slots__ = ()
    _kind = "lamb"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        *,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, weight_decay_mode, state_precision)
