"""The parameter that stands for a module's tables, which are not tensors of PyTorch's."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import optimizer

_grad: Any = torch.Tensor.grad
_get_grad, _set_grad = _grad.__get__, _grad.__set__

#: What each lookup that a backward has updated adds to the parameter's gradient. It is too small to
#: count in a norm, and no multiple of it is left when a gradient has been scaled or clipped.
MARK = 2.0**-70


class Deferred(Protocol):
    """The gradients of a module's tables that wait for `FusedOptimizer.step`."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def stand_in(self) -> Tensor:
        """Return a small tensor with the norm of all of them, which may be scaled in place."""

    def clear(self) -> None:
        """Drop them."""


class TableParameter(nn.Parameter):
    """What ``parameters()`` of a module has for its tables.

    Its two values are 0, and set back to it where an optimizer of PyTorch's has moved them.
    Autograd reaches the tables through it; freezing it freezes them.

    Where gradients wait for `FusedOptimizer.step`, its ``grad`` stands for them: it has their L2
    norm, and scaling it in place, as ``clip_grad_norm_`` and ``GradScaler`` do, scales all of
    them. ``grad = None`` drops them.
    """

    deferred: Deferred | None = None
    _looks_left = 8
    _scaled_late = False  # and then forgotten, before anybody was told
    _writes = 0  # to its values, the last time that they were set to 0

    @property
    def grad(self) -> Tensor | None:
        """The gradient of PyTorch's, or what stands for those that wait."""
        if self.deferred:
            return self.deferred.stand_in()
        found: Tensor | None = _get_grad(self)
        return found

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self.deferred:
            if value is not None:
                raise RuntimeError(
                    "the gradient of tables can be scaled in place or set to None, not replaced"
                )
            self.deferred.clear()
        elif value is None and self.was_scaled():
            self._scaled_late = True
        _set_grad(self, value)

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    def reset(self) -> None:
        """Set the values to 0 again if an optimizer has moved them: a penalty would see them."""
        if self._version != self._writes:
            self._writes = self._version
            self.data.zero_()

    def take_scaled(self) -> bool:
        """Whether gradients were scaled too late since the last call."""
        found, self._scaled_late = self._scaled_late or self.was_scaled(), False
        return found

    def was_scaled(self) -> bool:
        """Whether somebody scaled the gradient of tables that a backward had updated already."""
        grad: Tensor | None = _get_grad(self)
        if grad is None or self.deferred:
            return False
        if grad.is_cuda:  # waits for the device, so only at first
            if self._looks_left == 0 or torch.cuda.is_current_stream_capturing():
                return False
            self._looks_left -= 1
        # Two equal values as long as nobody clips them; an infinite one leaves no rest.
        first, second = grad.tolist()
        return _is_no_mark(first) or _is_no_mark(second)


def table_parameter(device: torch.device, *, trained: bool) -> TableParameter:
    """Return the parameter of a module's tables; on the CPU if PyTorch cannot use their device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    return TableParameter(torch.zeros(2, dtype=torch.float32, device=device), trained)


def _is_no_mark(value: float) -> bool:
    return value % MARK != 0 if math.isfinite(value) else False


@cache
def mark(device: torch.device, value: float = MARK) -> Tensor:
    """Return a gradient for the parameter, always the same tensor: autograd copies it."""
    with torch.inference_mode(False):
        return torch.full((2,), value, dtype=torch.float32, device=device)


def set_plain_grad(parameter: Any, value: Tensor | None) -> None:
    """Set the gradient that PyTorch keeps, whatever waits."""
    _set_grad(parameter, value)


def know(kind: type[Tensor]) -> None:
    """Let PyTorch take tensors of a type together with others.

    If it does not know all their types, it leaves foreach and fused kernels.
    """
    known = getattr(optimizer, "_foreach_supported_types", None)
    if isinstance(known, list):
        known.append(kind)


know(TableParameter)
