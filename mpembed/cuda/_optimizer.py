"""An optimizer of the user's own as collections take it."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

from mpembed import optim, registry
from mpembed._arguments.scalars import finite
from mpembed._bindings.device import Device
from mpembed.cuda import _kinds
from mpembed.cuda._sources import Source
from mpembed.optim import StatePrecision

# What the parts of an array's name may be besides an optimizer's.
_TAKEN = (*registry.OPTIMIZERS, "frozen")


class Optimizer(optim.Optimizer):
    """An optimizer of your own: a struct in C++, as the headers of ``mpembed/optim`` have them.

    It is compiled when it is made, and for a device when a collection there uses it, for the
    formats and the size of the rows in use. Compiled code is kept in ``MPEMBED_CACHE_DIR``, by
    default ``~/.cache/mpembed``. A checkpoint has the optimizer's name and settings and not its
    source: make the optimizer before you load one.

    Parameters
    ----------
    source : str
        C++17 that defines a struct; `mpembed/optim/common.h` says what it must have. It is
        compiled for the CPU and by NVRTC, which has no standard library.
    name : str
        The struct's name, by which checkpoints know it. In a process it stands for one source.
    lr : float
        Learning rate, finite and >= 0; may be changed at any time through the attribute.
    parameters : dict of str -> float
        A value for each of the struct's ``kParameters``.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the states are the struct's ``kStates``.

    Raises
    ------
    CompileError
        If the source does not compile; the message has its line numbers.
    ValueError
        If a name is taken or a parameter is missing or not known.
    RuntimeError
        If there is no compiler.
    """

    __slots__ = ("_own",)

    def __init__(
        self,
        source: str,
        name: str,
        lr: float,
        *,
        parameters: Mapping[str, float] | None = None,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        if not isinstance(source, str):
            raise TypeError(f"source must be a str of C++, got {type(source).__name__}")
        if not isinstance(name, str) or re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise ValueError(f"name must be that of the source's struct, got {name!r}")
        if name in _TAKEN:
            raise ValueError(f"name {name!r} is taken: give the struct another name")
        self._own = _kinds.of(Source(name, source))
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={"parameters": self._checked(parameters or {})},
        )
        optim.OWN[name] = partial(Optimizer, source, name)

    def _checked(self, given: Mapping[str, float]) -> dict[str, float]:
        known = self._own.description.parameters
        for name in given:
            if name not in known:
                listed = ", ".join(map(repr, known)) or "none"
                raise ValueError(f"{self.kind} has no parameter {name!r}; it has {listed}")
        for name in known:
            if name not in given:
                raise ValueError(f"{self.kind} needs a value for its parameter {name!r}")
        return {name: finite(name, given[name]) for name in known}

    @property
    def kind(self) -> str:
        """The struct's name."""
        return self._own.source.name

    @property
    def source(self) -> str:
        """The C++ of the struct."""
        return self._own.source.text

    @property
    def own_parameters(self) -> dict[str, float]:
        """The struct's parameters and their values."""
        return dict(self._settings["parameters"])

    def prepare(self, device: Device, dim: int, precisions: frozenset[str]) -> None:
        """Compile what a device needs to train tables of one dimension, with these formats."""
        self._own.prepare(device, dim, precisions)

    def kernel_number(self) -> int:
        """Return the number by which the kernels of this process know it."""
        return self._own.registered.number

    def _parameters(self) -> dict[str, Any]:
        return {**self.settings(), **self._settings["parameters"]}

    def with_lr(self, lr: float) -> Self:
        """Return another optimizer with these settings and a learning rate of its own."""
        return type(self)(self.source, self.kind, **{**self.settings(), "lr": lr})

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.source, self.kind, self.settings())

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"Optimizer(name={self.kind!r}, {inside})"


def _remade(source: str, name: str, settings: dict[str, Any]) -> Optimizer:
    return Optimizer(source, name, **settings)
