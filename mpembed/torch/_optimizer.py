"""The fused optimizer of a model's tables, for learning-rate schedulers and gradient scalers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mpembed.errors import NonFiniteUpdateError
from mpembed.optim import Optimizer
from mpembed.torch._module import TableModule
from mpembed.torch._module_calls import ModuleCalls, update_pending
from mpembed.torch._parameter import set_plain_grad

UPDATES = ("step", "backward")


class FusedOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` for the tables of a model.

    Each optimizer of mpembed's in the model is one group of parameters, with the learning rate
    `lr` and the names of its `tables`. A table with an optimizer or rate of its own has a group of
    its own. An update uses the rate that its group holds at the time, so schedulers work as with
    any optimizer. While an object of this class lives, set the rate in its groups: they overwrite
    the `lr` of mpembed's optimizers.

    Parameters
    ----------
    model : torch.nn.Module
        A module of `mpembed.torch`, or a model with some inside.
    grad_scaler : torch.amp.GradScaler, optional
        The scaler of the loss. ``update="backward"`` needs it: gradients are divided by its scale
        before the update, one that is then not finite updates nothing, and ``scaler.step`` of this
        optimizer finds out. With ``update="step"`` that call takes the scale out; given the scaler,
        `step` checks that it did.
    update : str
        ``"step"``: gradients of all lookups since the last step are kept, and `step` updates each
        row once, as any optimizer of PyTorch's does. Accumulation over several backwards,
        ``clip_grad_norm_`` over tables and other parameters together, and ``GradScaler`` mean what
        they mean for ``nn.Embedding``. ``"backward"``: each backward updates the rows it reaches,
        which takes less memory and time; `step` only applies the learning rates.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If it contains no module of `mpembed.torch`, or all tables are frozen; for an unknown
        `update`.

    Warns
    -----
    UserWarning
        If the tables have another FusedOptimizer. This one takes over, and `step` of the other
        raises RuntimeError.

    Notes
    -----
    `state_dict` has the learning rates; what the optimizer keeps for each row is part of the
    module's ``state_dict``.
    """

    def __init__(
        self,
        model: nn.Module,
        grad_scaler: torch.amp.GradScaler | None = None,
        *,
        update: str = "step",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        if grad_scaler is not None and not hasattr(grad_scaler, "get_scale"):
            raise TypeError(
                "grad_scaler must be a torch.amp.GradScaler or None, got "
                f"{type(grad_scaler).__name__}: mpembed's optimizers and their rates belong to the "
                "modules"
            )
        found = [m for m in model.modules() if isinstance(m, TableModule)]
        modules = list({id(m.calls): m for m in found}.values())  # copy.copy() shares them
        if not modules:
            raise ValueError(
                "model has no module of mpembed.torch: make this optimizer after convert(model). "
                "Tables that are sharded have rates of their own: local.optimizer.lr with "
                "mpembed.torch.distributed, model.fused_optimizer with TorchRec"
            )
        self.grad_scaler, self._update = grad_scaler, update
        self._overflow_scale: float | None = None  # at which a gradient was not finite
        self._fused: list[Optimizer] = []
        self._half_set: set[int] = set()  # groups whose rate was being set
        groups: list[dict[str, Any]] = []
        used = [self._add(module, groups) for module in modules]
        if not groups:
            raise ValueError(
                "all tables of the model are frozen: there is nothing for this optimizer"
            )
        super().__init__(groups, {"lr": 0.0})
        self._modules = [m for m, numbers in zip(modules, used, strict=True) if numbers]
        if any(module.attached_optimizer is not None for module in self._modules):
            warnings.warn(
                "the tables have a FusedOptimizer already: this one takes over, and step() of the "
                "other will raise an error",
                stacklevel=2,
            )
        for module, numbers in zip(modules, used, strict=True):
            if numbers:
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
                anchor = torch.zeros(2, requires_grad=True) if numbers else module.anchor
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
        if lr != fused.lr or group in self._half_set:
            self._half_set.add(group)  # an exception may come before all tables have it
            fused.lr = lr
            self._half_set.discard(group)

    @property
    def defers(self) -> bool:
        """Whether `step` updates the rows, and not the backward."""
        return self._update == "step"

    @property
    def scales(self) -> bool:
        """Whether a backward takes out the scale of an enabled scaler."""
        return not self.defers and self._has_scaler

    @property
    def _has_scaler(self) -> bool:
        return self.grad_scaler is not None and self.grad_scaler.is_enabled()

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
        """Update the rows with the gradients since the last step, or apply the learning rates.

        With ``update="backward"`` the rows have been updated already.

        Parameters
        ----------
        closure : callable, optional
            Called first, with gradients enabled.

        Returns
        -------
        float or None
            What the closure returned.

        Raises
        ------
        RuntimeError
            If a newer FusedOptimizer has the tables; if gradients were scaled after a backward had
            updated the rows, were clipped by value, or still have the scale of `grad_scaler`.
        NonFiniteUpdateError
            With ``on_nonfinite="raise"``, after all other rows have been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for module in self._modules:
            if module.attached_optimizer is not self:
                raise RuntimeError(
                    "a newer FusedOptimizer has taken the tables over: call its step()"
                )
        for module in self._modules:
            module.anchor.data.zero_()  # PyTorch's fused kernels do not count as writes
        for number in range(len(self._fused)):
            self.apply_lr(number)
        if self.defers:
            self._update_rows()
        elif not self.scales and any(
            module.anchor.take_scaled() for module in self._modules if not module.calls.has_replicas
        ):
            self.zero_grad()
            raise RuntimeError(
                "the gradients of the tables were scaled or clipped after the backward had updated "
                "the rows: use update='step', or pass grad_scaler= and clip_grad_norm= of the "
                "module"
            )
        return loss

    @torch.no_grad()
    def _update_rows(self) -> None:
        by_collection: dict[int, list[ModuleCalls]] = {}
        for module in self._modules:
            by_collection.setdefault(id(module.tables), []).append(module.calls)
        calls = [one for several in by_collection.values() for one in several]
        if not any(one.pending for one in calls) and any(one.pending.dropped for one in calls):
            warnings.warn(
                "step() found no gradients of tables: zero_grad(), of this or of another optimizer "
                "with the same parameters, cleared them after the backward",
                stacklevel=4,
            )
        if self._has_scaler and any(one.pending.is_as_added for one in calls if one.pending):
            raise RuntimeError(
                "the scale of the loss is still in the gradients of the tables: call "
                "scaler.step(optimizer) in place of optimizer.step()"
            )
        error: NonFiniteUpdateError | None = None
        for several in by_collection.values():
            try:
                update_pending(several, several[0].current_stream())
            except NonFiniteUpdateError as found:
                error = found if error is None else error
        if error is not None:
            raise error

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that wait for `step`.

        Parameters
        ----------
        set_to_none : bool
            Ignored.
        """
        self._overflow_scale = None
        for module in self._modules:
            module.calls.pending.clear()
        for group in self.param_groups:
            for anchor in group["params"]:
                # A scaler refuses an optimizer in which it has found no gradient.
                set_plain_grad(anchor, torch.zeros_like(anchor))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with saved learning rates.

        Parameters
        ----------
        state_dict : dict
            From `state_dict` of a FusedOptimizer of such a model.

        Raises
        ------
        ValueError
            Before anything changes, for a state of another optimizer or with a wrong rate.
        """
        groups = state_dict.get("param_groups", ())
        if state_dict.get("state") or any(not {"lr", "tables"} <= {*group} for group in groups):
            raise ValueError(
                "the state is not a FusedOptimizer's: give rows and optimizer states of PyTorch's "
                "or another library's to module.tables.set_rows, set_state and set_updates "
                "(docs/migrating.md), and the rate to the optimizer of the tables"
            )
        for fused, group in zip(self._fused, groups, strict=False):
            fused.with_lr(float(group["lr"]))
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
