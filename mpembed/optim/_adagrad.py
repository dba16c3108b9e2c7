"""Adagrad, with a sum of squares an element or a row."""

from mpembed._arguments.scalars import FLOAT_MAX, finite
from mpembed.optim._base import Optimizer, StatePrecision, accumulator_start, positive


class _Accumulating(Optimizer):
    """An optimizer that adds up squared gradients."""

    __slots__ = ()
    squares = ("sum",)

    @property
    def eps(self) -> float:
        """Added to the denominator."""
        return float(self._settings["eps"])

    @property
    def initial_accumulator_value(self) -> float:
        """Start value of the state."""
        return float(self._settings["initial_accumulator_value"])


class Adagrad(_Accumulating):
    """``h += g^2; w -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(h) + eps)``.

    h is one value an element, t the number of updates of the collection.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    lr_decay : float
        Finite and >= 0.
    eps : float
        Added to the denominator; positive in float32.
    initial_accumulator_value : float
        Start value of every h.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the state is ``"sum"``.
    """

    __slots__ = ()
    _kind = "adagrad"

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        start = accumulator_start(initial_accumulator_value)
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={
                "lr_decay": finite("lr_decay", lr_decay, 0.0, FLOAT_MAX),
                "eps": positive("eps", eps),
                "initial_accumulator_value": start,
            },
            start={"sum": start},
        )

    @property
    def lr_decay(self) -> float:
        """How fast the learning rate falls with the number of updates."""
        return float(self._settings["lr_decay"])


class RowwiseAdagrad(_Accumulating):
    """``h += mean(g^2); w -= lr / (sqrt(h) + eps) * g``, h one value a row.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    eps : float
        Added to the denominator; positive in float32.
    initial_accumulator_value : float
        Start value of every h.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the state is ``"sum"``.
    """

    __slots__ = ()
    _kind = "rowwise_adagrad"

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        eps: float = 1e-8,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        start = accumulator_start(initial_accumulator_value)
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={"eps": positive("eps", eps), "initial_accumulator_value": start},
            start={"sum": start},
        )
