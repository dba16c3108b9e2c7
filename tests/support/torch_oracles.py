"""PyTorch's optimizers on sparse gradients, in the form of `oracles.Oracle`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SPARSE = {"adam": torch.optim.SparseAdam, "adagrad": torch.optim.Adagrad}
KINDS = [*SPARSE, "sgd", "sgd_momentum"]


class TorchOracle:
    """A table that PyTorch trains.

    `torch.optim.SGD` has no momentum for sparse gradients that lets the unused rows rest; so each
    row is a parameter of its own there, which PyTorch leaves alone where it has no gradient.
    """

    def __init__(self, kind: str, w: Any, lr: float, settings: dict[str, Any]) -> None:
        given = torch.tensor(np.asarray(w), dtype=torch.float32)
        self.sparse = kind in SPARSE
        self.rows = [given] if self.sparse else list(given.clone())
        self.parameters = [torch.nn.Parameter(row.clone()) for row in self.rows]
        made: Any = SPARSE.get(kind, torch.optim.SGD)
        self.optimizer = made(self.parameters, lr=lr, **settings)

    @property
    def w(self) -> npt.NDArray[np.float64]:
        """The table as it is now."""
        parts = [parameter.detach().numpy() for parameter in self.parameters]
        return np.asarray(parts[0] if self.sparse else np.stack(parts), np.float64)

    def step(self, gradients: Any, used: npt.NDArray[np.int64]) -> None:
        """One update of the used rows with their rows of `gradients`."""
        values = torch.tensor(gradients[used], dtype=torch.float32)
        if self.sparse:
            (weight,) = self.parameters
            at = torch.from_numpy(used)[None, :]
            weight.grad = torch.sparse_coo_tensor(
                at, values, weight.shape, is_coalesced=True, check_invariants=True
            )
        else:
            self.optimizer.zero_grad(set_to_none=True)
            for row, value in zip(used.tolist(), values, strict=True):
                self.parameters[row].grad = value
        with torch.sparse.check_sparse_tensor_invariants(enable=True):  # or PyTorch warns
            self.optimizer.step()
