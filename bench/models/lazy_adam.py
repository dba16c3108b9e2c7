"""Adam as embeddings are trained by it: rows that a batch does not reach keep their moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LazyAdam(torch.optim.Adam):
    """``torch.optim.SparseAdam`` for the weights of embeddings, Adam for all other parameters.

    A batch reaches the rows that it looks up and those whose gradient is not zero, as models that
    use a whole weight give it.

    Parameters
    ----------
    model : torch.nn.Module
        The original model.
    lr : float
        Learning rate of both.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        found = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        self._weights: list[Tensor] = list({id(one.weight): one.weight for one in found}.values())
        self._looked_up: dict[int, list[Tensor]] = {id(weight): [] for weight in self._weights}
        others = [one for one in model.parameters() if id(one) not in self._looked_up]
        # An optimizer needs a parameter: a model may be embeddings alone.
        super().__init__(others or [torch.zeros(1, requires_grad=True)], lr=lr)
        self._sparse = torch.optim.SparseAdam(self._weights, lr=lr) if self._weights else None
        for one in found:
            one.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            rows = given[0].detach().reshape(-1)
            if module.padding_idx is not None:
                rows = rows[rows != module.padding_idx]
            self._looked_up[id(module.weight)].append(rows)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the rows that the batch reached, and all other parameters."""
        if self._sparse is not None:
            kept = [weight.grad for weight in self._weights]
            for weight in self._weights:
                if weight.grad is not None:
                    weight.grad = _as_sparse(weight.grad, self._looked_up[id(weight)])
            self._sparse.step()
            for weight, grad in zip(self._weights, kept, strict=True):
                weight.grad = grad
        for rows in self._looked_up.values():  # `zero_grad` may be called after the forward
            rows.clear()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        if self._sparse is not None:
            self._sparse.zero_grad(set_to_none)


def _as_sparse(grad: Tensor, looked_up: list[Tensor]) -> Tensor:
    if grad.is_sparse:
        return grad
    rows = torch.cat([grad.any(1).nonzero()[:, 0], *looked_up]).unique()
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape)
