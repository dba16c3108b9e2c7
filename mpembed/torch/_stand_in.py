"""What stands for the gradients of tables that wait for a step, as others see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed.torch._parameter import know


class StandIn(torch.Tensor):
    """A gradient that has the L2 norm of another one; other norms of it are refused.

    A scaler unscales it once, also where two optimizers have its parameter.
    """

    unscaled: float | None = None  # by which factor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation of PyTorch's; RuntimeError for a norm that would be wrong."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "_amp_foreach_non_finite_check_and_unscale_":
            return _unscale(func, *args)
        if "norm" in name:
            order = args[1] if len(args) > 1 else kwargs.get("ord", kwargs.get("p"))
            if order not in (None, 2, "fro"):
                raise RuntimeError(
                    f"the gradient of tables takes part in the L2 norm alone, not in that of order "
                    f"{order}: use norm_type=2, or leave module.anchor out"
                )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _unscale(
    func: Callable[..., Any], grads: Sequence[Tensor], found_inf: Tensor, factor: Tensor
) -> None:
    """Run a scaler's function; leave gradients of tables that it has unscaled before."""
    by = float(factor)
    of_tables = [grad for grad in grads if isinstance(grad, StandIn)]
    if any(grad.unscaled not in (None, by) for grad in of_tables):
        raise RuntimeError(
            "two scalers with different scales unscale the gradient of tables: leave module.anchor "
            "out of one of their optimizers"
        )
    with torch._C.DisableTorchFunctionSubclass():
        kept = [None if grad.unscaled is None else grad.clone() for grad in of_tables]
        func(grads, found_inf, factor)
        for grad, before in zip(of_tables, kept, strict=True):
            grad.unscaled = by
            if before is not None:
                grad.copy_(before)


know(StandIn)
