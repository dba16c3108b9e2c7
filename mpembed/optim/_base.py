"""What all optimizers share: settings, states, the learning rate and who is told of it."""

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from mpembed import registry
from mpembed._arguments.scalars import FLOAT_MAX, finite
from mpembed._bindings import kernels
from mpembed._bindings.device import Device

StatePrecision = str | Mapping[str, str]


class State(NamedTuple):
    """What an optimizer keeps for a row.

    Attributes
    ----------
    name : str
        Of the state, such as ``"exp_avg"``.
    shape : int
        ``registry.STATE_ROW``, one value a row, or ``registry.STATE_ELEMENT``, one an element.
    precision : str
        Storage format, a key of ``registry.STATE_FORMATS``.
    initial : float
        What it starts with.
    """

    name: str
    shape: int
    precision: str
    initial: float


class LrListener(Protocol):
    """Whoever keeps a copy of learning rates."""

    def refuse_lr(self) -> None:
        """Raise where the learning rate cannot be changed now."""

    def set_lr(self, optimizer: "Optimizer") -> None:
        """Use an optimizer's learning rate from now on."""


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
    state_precision : str or dict of state name -> str
        How states are stored: ``"fp32"``, or ``"bf16"``, rounded as the collection rounds. States
        that a dict leaves out are FP32.
    own : dict of str -> number or tuple
        The other arguments of the optimizer's class, checked.
    start : dict of state name -> float
        Initial values other than the optimizer's.
    """

    # No __dict__: setting `learning_rate` is an error, not a second, unused attribute.
    __slots__ = ("__weakref__", "_lr", "_settings", "_states")
    _kind: ClassVar[str]
    #: The states that are sums or means of squares, and so never negative.
    squares: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        lr: float,
        *,
        weight_decay: float,
        weight_decay_mode: str,
        state_precision: StatePrecision = "fp32",
        own: Mapping[str, Any],
        start: Mapping[str, float] | None = None,
    ) -> None:
        self._lr = self._checked_lr(lr)
        decay = finite("weight_decay", weight_decay, 0.0, FLOAT_MAX)
        registry.choose("weight_decay_mode", weight_decay_mode, registry.WEIGHT_DECAYS)
        if decay > 0 and weight_decay_mode == "none":
            raise ValueError("weight_decay needs weight_decay_mode='l2' or 'decoupled'")
        decays = {"weight_decay": decay, "weight_decay_mode": weight_decay_mode}
        self._settings: dict[str, Any] = {**own, **decays}
        self._states = self._declared(state_precision, start or {})

    def _declared(self, precision: StatePrecision, start: Mapping[str, float]) -> tuple[State, ...]:
        """Return the states in the kernels' order; keep the setting where there are some."""
        declared = kernels.optimizer_states(self.kernel_number())
        names = [name for name, _, _ in declared]
        if isinstance(precision, Mapping):
            chosen = dict(precision)
            for name, one in chosen.items():
                if name not in names:
                    raise ValueError(
                        f"state_precision: {type(self).__name__} has no state {name!r}; it has "
                        f"{', '.join(map(repr, names)) or 'none'}"
                    )
                registry.choose(f"state_precision[{name!r}]", one, registry.STATE_FORMATS)
        else:
            registry.choose("state_precision", precision, registry.STATE_FORMATS)
            if precision != "fp32" and not names:
                raise ValueError(
                    f"state_precision must be 'fp32', got {precision!r}: {type(self).__name__} "
                    "with these settings keeps no state"
                )
            chosen = dict.fromkeys(names, precision)
        self._settings["state_precision"] = chosen if isinstance(precision, Mapping) else precision
        return tuple(
            State(name, shape, chosen.get(name, "fp32"), start.get(name, initial))
            for name, shape, initial in declared
        )

    def _checked_lr(self, lr: float) -> float:
        return finite("lr", lr, 0.0, FLOAT_MAX)

    @property
    def kind(self) -> str:
        """The optimizer's name: a key of ``registry.OPTIMIZERS``, or that of one of your own."""
        return self._kind

    @property
    def lr(self) -> float:
        """Learning rate of the next backward."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        checked = self._checked_lr(value)
        listeners = list(_listeners.get(self, ()))
        for listener in listeners:  # all before any: one that refuses leaves everything as it was
            listener.refuse_lr()
        self._lr = checked
        with ExitStack() as each:  # the others too where one fails
            for listener in listeners:
                each.callback(listener.set_lr, self)

    @property
    def weight_decay(self) -> float:
        """Weight decay factor."""
        return float(self._settings["weight_decay"])

    @property
    def weight_decay_mode(self) -> str:
        """``"none"``, ``"l2"`` or ``"decoupled"``."""
        return str(self._settings["weight_decay_mode"])

    @property
    def states(self) -> tuple[State, ...]:
        """What is kept for each row: (name, shape, precision, initial value) of each state."""
        return self._states

    def kernel_number(self) -> int:
        """Return the kernels' number of the optimizer."""
        return registry.OPTIMIZERS[self.kind]

    def kernel_kind(self) -> tuple[int, int]:
        """Return the kernels' numbers of the optimizer and of its mode of weight decay."""
        return self.kernel_number(), registry.WEIGHT_DECAYS[self.weight_decay_mode]

    def prepare(self, device: Device, dim: int, precisions: frozenset[str]) -> None:
        """Have what a device needs to train tables of one dimension, with these formats.

        Called before anything of a collection is made. Those of the package need nothing.
        """

    def parameters(self) -> tuple[float, ...]:
        """Return what an update reads, in the kernels' order."""
        values = self._parameters()
        kind, _ = self.kernel_kind()
        return tuple(values[name] for name in kernels.parameter_names(kind))

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters by the kernels' names, and perhaps other settings."""
        return self.settings()

    def late_step(self, updates: int) -> float:
        """Return how long the first step of a row is after so many updates of other rows.

        1 is its length at the first update. A bias correction follows the count of updates, which
        all rows share.
        """
        return 1.0

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, for a checkpoint."""
        return {"lr": self.lr, **self._settings}

    def with_lr(self, lr: float) -> Self:
        """Return another optimizer with these settings and a learning rate of its own."""
        return type(self)(**{**self.settings(), "lr": lr})

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{type(self).__name__}({inside})"


def positive(name: str, value: float) -> float:
    """Return a number that is positive in float32 too: it is added to denominators."""
    checked = finite(name, value, 0.0, FLOAT_MAX)
    if np.float32(checked) == 0:
        raise ValueError(f"{name} must be positive in float32, got {value!r}")
    return checked


def accumulator_start(value: float) -> float:
    """Return a checked initial sum of squares."""
    return finite("initial_accumulator_value", value, 0.0, 1e30)


_listeners: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[LrListener]]
_listeners = weakref.WeakKeyDictionary()


def listen(optimizer: Optimizer, listener: LrListener) -> None:
    """Tell a listener whenever the learning rate changes, as long as it lives."""
    _listeners.setdefault(optimizer, weakref.WeakSet()).add(listener)
