"""The fused optimizer of a model's tables, for learning-rate schedulers and gradient scalers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mpembed.optim import Optimizer
from mpembed.torch._module import TableModule


class FusedOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose updates are made by the backward already.

    Each optimizer of mpembed's in the model is one group of parameters, with the learning rate
    `lr`. A backward uses the rate that its group holds at the time, so that schedulers work as
    with any optimizer. While an object of this class lives, its groups decide, and no longer the
    `lr` of mpembed's optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        A module of `mpembed.torch`, or a model with some inside.
    grad_scaler : torch.amp.GradScaler, optional
        The scaler of the loss. Gradients are divided by its scale before the update. One that is
        then not finite updates nothing, and the scaler learns of it in ``scaler.step(this)``.

    Raises
    ------
    TypeError
        If `model` is no module.
    ValueError
        If there is no module of `mpembed.torch` in it.

    Notes
    -----
    `step` calls the closure, if any, and nothing else is left to do. `state_dict` has the learning
    rates; what the optimizer keeps for each row is part of the module's ``state_dict``.
    """

    def __init__(self, model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        modules = [m for m in model.modules() if isinstance(m, TableModule)]
        if not modules:
            raise ValueError("the model has no module of mpembed.torch")
        grouped: dict[int, list[TableModule]] = {}
        for module in modules:
            grouped.setdefault(id(module.optimizer), []).append(module)
        self.grad_scaler = grad_scaler
        self._lost_at: float | None = None  # the scale at which a gradient was not finite
        self._fused: list[Optimizer] = [group[0].optimizer for group in grouped.values()]
        groups = [
            {"params": [module._anchor for module in group], "lr": group[0].optimizer.lr}
            for group in grouped.values()
        ]
        super().__init__(groups, {"lr": 0.0})
        for number, group in enumerate(grouped.values()):
            for module in group:
                module._calls.follow(self, number)
        self.zero_grad()

    def apply(self, number: int) -> None:
        """Give the learning rate of a group to its optimizer.

        Parameters
        ----------
        number : int
            Place of the group in `param_groups`.

        Raises
        ------
        ValueError
            If it is negative or not finite.
        """
        lr, fused = float(self.param_groups[number]["lr"]), self._fused[number]
        if lr != fused.lr:
            fused.lr = lr

    def unscaled(self, grad: Tensor) -> Tensor | None:
        """Divide a gradient by the scale of the loss.

        Parameters
        ----------
        grad : Tensor
            Of an output, scaled if there is a scaler.

        Returns
        -------
        Tensor or None
            None where it is not finite and a scaler will look for a smaller scale.
        """
        scaler = self.grad_scaler
        if scaler is None or not scaler.is_enabled():
            return grad
        scale = float(scaler.get_scale())
        if self._lost_at is not None and self._lost_at != scale:
            self.zero_grad()  # the scaler knows: it has lowered the scale
        grad = grad * (1.0 / scale)
        if bool(torch.isfinite(grad).all()):
            return grad
        self._lost_at = scale
        return None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take the learning rates over; the rows have been updated.

        Parameters
        ----------
        closure : callable, optional
            Called with gradients enabled, as other optimizers do.

        Returns
        -------
        float or None
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number in range(len(self._fused)):
            self.apply(number)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget that a scaled gradient was not finite; there are no gradients to clear.

        Parameters
        ----------
        set_to_none : bool
            Without meaning here.
        """
        self._lost_at = None
        for group in self.param_groups:
            for anchor in group["params"]:
                # A gradient must be there, for a scaler insists on having looked at one.
                anchor.grad = torch.zeros_like(anchor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take learning rates over.

        Parameters
        ----------
        state_dict : dict
            From `state_dict` of the optimizer of such a model.
        """
        super().load_state_dict(state_dict)
        for number in range(len(self._fused)):
            self.apply(number)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse groups beyond those of the model's tables."""
        if len(self.param_groups) == len(self._fused):
            raise ValueError("a FusedOptimizer has the tables of its model and no other parameters")
        super().add_param_group(param_group)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a FusedOptimizer cannot be pickled or copied; use its state_dict()")
