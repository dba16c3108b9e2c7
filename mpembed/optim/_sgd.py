"""Stochastic gradient descent."""

from mpembed._arguments.scalars import FLOAT_MAX, finite
from mpembed.optim._base import Optimizer, StatePrecision


class SGD(Optimizer):
    """``w -= lr * g``; with momentum ``b = momentum * b + g; w -= lr * b``.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    momentum : float
        Finite and >= 0. With 0 no state is kept.
    weight_decay : float
        Finite and >= 0; a non-zero one needs a mode.
    weight_decay_mode : str
        ``"none"``, ``"l2"`` (added to the gradient) or ``"decoupled"`` (``w -= lr * wd * w``).
    state_precision : str or dict of state name -> str
        How the momentum is stored: ``"fp32"``, or ``"bf16"``, rounded as the collection rounds.
    """

    __slots__ = ()

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        kept = finite("momentum", momentum, 0.0, FLOAT_MAX)
        self._settings = {"momentum": kept}  # `kind` depends on it
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={"momentum": kept},
        )

    @property
    def kind(self) -> str:
        """The kernels' name: ``"sgd"``, or ``"sgd_momentum"``."""
        return "sgd_momentum" if self.momentum > 0 else "sgd"

    @property
    def momentum(self) -> float:
        """What is left of the momentum after a step."""
        return float(self._settings["momentum"])
