"""Fused optimizers: settings only; the arithmetic is in ``include/mpembed/optim/``."""

import weakref
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol

import numpy as np

from mpembed import registry
from mpembed._arguments.scalars import finite
from mpembed._bindings import kernels

_FLOAT_MAX = float(np.finfo(np.float32).max)


class LrListener(Protocol):
    """Whoever keeps a copy of a learning rate."""

    def refuse_lr(self) -> None:
        """Raise where the learning rate cannot be changed now."""

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""


class Optimizer:
    """What all optimizers share; `lr` is the only attribute that can be set.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    weight_decay : float
        Finite and >= 0.
    weight_decay_mode : str
        ``"none"``, ``"l2"`` (added to the gradient) or ``"decoupled"`` (``w -= lr * wd * w``). A
        non-zero `weight_decay` needs a mode.
    """

    # No __dict__: setting `learning_rate` is an error, not a second, unused attribute.
    __slots__ = ("__weakref__", "_lr", "_weight_decay", "_weight_decay_mode")
    name: ClassVar[str]

    def __init__(
        self, lr: float, *, weight_decay: float = 0.0, weight_decay_mode: str = "none"
    ) -> None:
        self.lr = lr
        self._weight_decay = finite("weight_decay", weight_decay, 0.0, _FLOAT_MAX)
        registry.choose("weight_decay_mode", weight_decay_mode, registry.WEIGHT_DECAYS)
        if self._weight_decay > 0 and weight_decay_mode == "none":
            raise ValueError("weight_decay needs weight_decay_mode='l2' or 'decoupled'")
        self._weight_decay_mode = weight_decay_mode

    @property
    def lr(self) -> float:
        """Learning rate of the next backward."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        checked = finite("lr", value, 0.0, _FLOAT_MAX)
        listeners = list(_listeners.get(self, ()))
        for listener in listeners:  # all before any: one that refuses leaves everything as it was
            listener.refuse_lr()
        self._lr = checked
        with ExitStack() as each:  # the others too where one fails
            for listener in listeners:
                each.callback(listener.set_lr, checked)

    @property
    def eps(self) -> float:
        """Added to the denominator; 0 where the optimizer has none."""
        return 0.0

    @property
    def weight_decay(self) -> float:
        """Weight decay factor."""
        return self._weight_decay

    @property
    def weight_decay_mode(self) -> str:
        """``"none"``, ``"l2"`` or ``"decoupled"``."""
        return self._weight_decay_mode

    @property
    def state_shape(self) -> int:
        """What is kept: ``registry.STATE_NONE``, ``STATE_ROW`` or ``STATE_ELEMENT``."""
        return int(kernels.state_shape(registry.OPTIMIZERS[self.name]))

    @property
    def state_precision(self) -> str:
        """Storage format of the state."""
        return "fp32"

    @property
    def initial_accumulator_value(self) -> float:
        """Start value of the state."""
        return 0.0

    def kernel_settings(self) -> tuple[int, int, float, float, float]:
        """Return (kind, decay mode, lr, eps, weight decay) for the kernels."""
        kind = registry.OPTIMIZERS[self.name]
        mode = registry.WEIGHT_DECAYS[self.weight_decay_mode]
        return kind, mode, self.lr, self.eps, self.weight_decay

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, for a checkpoint."""
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "weight_decay_mode": self.weight_decay_mode,
        }

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{type(self).__name__}({inside})"


_listeners: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[LrListener]]
_listeners = weakref.WeakKeyDictionary()


def listen(optimizer: Optimizer, listener: LrListener) -> None:
    """Tell a listener the learning rate, now and whenever it changes, as long as it lives."""
    _listeners.setdefault(optimizer, weakref.WeakSet()).add(listener)
    listener.set_lr(optimizer.lr)


class SGD(Optimizer):
    """``w -= lr * g``; keeps no state.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    weight_decay : float
        Finite and >= 0; a non-zero one needs a mode.
    weight_decay_mode : str
        ``"none"``, ``"l2"`` (added to the gradient) or ``"decoupled"`` (``w -= lr * wd * w``).
    """

    __slots__ = ()
    name = "sgd"

    def __init__(
        self, lr: float, *, weight_decay: float = 0.0, weight_decay_mode: str = "none"
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, weight_decay_mode=weight_decay_mode)


class _Accumulating(Optimizer):
    """An optimizer that adds up squared gradients."""

    __slots__ = ("_eps", "_start")

    def __init__(
        self,
        lr: float,
        *,
        eps: float,
        initial_accumulator_value: float,
        weight_decay: float,
        weight_decay_mode: str,
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, weight_decay_mode=weight_decay_mode)
        self._eps = finite("eps", eps, 0.0, _FLOAT_MAX)
        if np.float32(self._eps) == 0:
            raise ValueError(f"eps must be positive in float32, got {eps!r}")
        self._start = finite("initial_accumulator_value", initial_accumulator_value, 0.0, 1e30)

    @property
    def eps(self) -> float:
        """Added to the denominator."""
        return self._eps

    @property
    def initial_accumulator_value(self) -> float:
        """Start value of the state."""
        return self._start

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, for a checkpoint."""
        return {
            **super().settings(),
            "eps": self.eps,
            "initial_accumulator_value": self.initial_accumulator_value,
        }


class Adagrad(_Accumulating):
    """``h += g^2; w -= lr * g / (sqrt(h) + eps)``, h one value an element.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    eps : float
        Added to the denominator; positive in float32.
    initial_accumulator_value : float
        Start value of every h.
    weight_decay : float
        Finite and >= 0; a non-zero one needs a mode.
    weight_decay_mode : str
        ``"none"``, ``"l2"`` (added to the gradient) or ``"decoupled"`` (``w -= lr * wd * w``).
    state_precision : str
        How h is stored: ``"fp32"``, or ``"bf16"``, rounded as the collection rounds.
    """

    __slots__ = ("_state_precision",)
    name = "adagrad"

    def __init__(
        self,
        lr: float,
        *,
        eps: float = 1e-8,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: str = "fp32",
    ) -> None:
        super().__init__(
            lr,
            eps=eps,
            initial_accumulator_value=initial_accumulator_value,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
        )
        registry.choose("state_precision", state_precision, registry.STATE_FORMATS)
        self._state_precision = state_precision

    @property
    def state_precision(self) -> str:
        """Storage format of the state."""
        return self._state_precision

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, for a checkpoint."""
        return {**super().settings(), "state_precision": self.state_precision}


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
    weight_decay : float
        Finite and >= 0; a non-zero one needs a mode.
    weight_decay_mode : str
        ``"none"``, ``"l2"`` (added to the gradient) or ``"decoupled"`` (``w -= lr * wd * w``).
    """

    __slots__ = ()
    name = "rowwise_adagrad"

    def __init__(
        self,
        lr: float,
        *,
        eps: float = 1e-8,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
    ) -> None:
        super().__init__(
            lr,
            eps=eps,
            initial_accumulator_value=initial_accumulator_value,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
        )


OPTIMIZERS: dict[str, type[Optimizer]] = {cls.name: cls for cls in (SGD, Adagrad, RowwiseAdagrad)}
