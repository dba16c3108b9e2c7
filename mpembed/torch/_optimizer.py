"""The fused optimizer of a model's tables, for learning-rate schedulers and gradient scalers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mpembed.optim import Optimizer
from mpembed.torch._module import TableModule


class FusedOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` for tables that the backward has already updated.

    Each optimizer of mpembed's in the model is one group of parameters, with the learning rate
    `lr` and the names of its `tables`. A table with an optimizer or rate of its own has a group of
    its own. A backward uses the rate that its group holds at the time, so schedulers work as with
    any optimizer. While an object of this class lives, set the rate in its groups: they overwrite
    the `lr` of mpembed's optimizers.

    Parameters
    ----------
    model : torch.nn.Module
        A module of `mpembed.torch`, or a model with some inside.
    grad_scaler : torch.amp.GradScaler, optional
        The scaler of the loss. Gradients are divided by its scale before the update. A gradient
        that is then not finite updates nothing; ``scaler.step`` of this optimizer finds out.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If it contains no module of `mpembed.torch`, or all tables are frozen.

    Notes
    -----
    `step` updates no rows. `state_dict` has the learning rates; what the optimizer keeps for each
    row is part of the module's ``state_dict``.
    """

    def __init__(self, model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        modules = [m for m in model.modules() if isinstance(m, TableModule)]
        if not modules:
            raise ValueError(
                "model has no module of mpembed.torch: make this optimizer after convert(model)"
            )
        self.grad_scaler = grad_scaler
        self._overflow_scale: float | None = None  # at which a gradient was not finite
        self._fused: list[Optimizer] = []
        groups: list[dict[str, Any]] = []
        used = [self._add(module, groups) for module in modules]
        if not groups:
            raise ValueError(
                "all tables of the model are frozen: there is nothing for this optimizer"
            )
        super().__init__(groups, {"lr": 0.0})
        for module, numbers in zip(modules, used, strict=True):
            module.attach_optimizer(self, numbers)
        self.zero_grad()

    def _add(self, module: TableModule, groups: list[dict[str, Any]]) -> list[int]:
        """Put a module's tables into the groups of their optimizers; return which these are."""
        numbers: list[int] = []
        for name, optimizer in module.tables.optimizers.items():
            if optimizer is None:
                continue
            number = next((i for i, one in enumerate(self._fused) if one is optimizer), len(groups))
            if number == len(groups):
                self._fused.append(optimizer)
                groups.append({"params": [], "lr": optimizer.lr, "tables": []})
            if number not in numbers:
                # PyTorch takes a parameter once: further groups of a module get a stand-in.
                anchor = torch.zeros((), requires_grad=True) if numbers else module.autograd_anchor
                groups[number]["params"].append(anchor)
                numbers.append(number)
            groups[number]["tables"].append(name)
        return numbers

    def apply_lr(self, group: int) -> None:
        """Give the learning rate of a group to its optimizer.

        Parameters
        ----------
        group : int
            Place of the group in `param_groups`.

        Raises
        ------
        ValueError
            If it is negative or not finite.
        """
        lr, fused = float(self.param_groups[group]["lr"]), self._fused[group]
        if lr != fused.lr:
            fused.lr = lr

    def unscale(self, grad: Tensor) -> Tensor | None:
        """Divide a gradient by the scale of the loss.

        Parameters
        ----------
        grad : Tensor
            Of an output, scaled if there is a scaler.

        Returns
        -------
        Tensor or None
            None where it is not finite and the scaler will lower its scale.
        """
        scaler = self.grad_scaler
        if scaler is None or not scaler.is_enabled():
            return grad
        scale = float(scaler.get_scale())
        if self._overflow_scale is not None and self._overflow_scale != scale:
            self.zero_grad()  # the scaler has seen it and lowered the scale
        grad = grad * (1.0 / scale)
        if bool(torch.isfinite(grad).all()):
            return grad
        self._overflow_scale = scale
        return None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply the learning rates of the groups; the rows have been updated by the backward.

        Parameters
        ----------
        closure : callable, optional
            Called first, with gradients enabled.

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
            self.apply_lr(number)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget that a scaled gradient was not finite; there are no gradients to clear.

        Parameters
        ----------
        set_to_none : bool
            Ignored.
        """
        self._overflow_scale = None
        for group in self.param_groups:
            for anchor in group["params"]:
                # A scaler refuses an optimizer in which it has found no gradient.
                anchor.grad = torch.zeros_like(anchor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with saved learning rates.

        Parameters
        ----------
        state_dict : dict
            From `state_dict` of a FusedOptimizer of such a model.
        """
        super().load_state_dict(state_dict)
        for number in range(len(self._fused)):
            self.apply_lr(number)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse groups beyond those of the model's tables."""
        if len(self.param_groups) == len(self._fused):
            raise ValueError(
                "a FusedOptimizer has the tables of its model and no other parameters: give "
                "those to another optimizer"
            )
        super().add_param_group(param_group)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a FusedOptimizer cannot be pickled or copied; use its state_dict()")
