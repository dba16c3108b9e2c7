"""The learning rates of a kernel's tables as TorchRec's optimizers and schedulers see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed.optim import Optimizer
from mpembed.torch.torchrec._shards import Shard
from mpembed.torch.torchrec._versions import FusedOptimizer


class MpembedFusedOptimizer(FusedOptimizer):  # type: ignore[misc]
    """The optimizers of a kernel, whose backward updates the rows.

    Each optimizer of mpembed's is one group of parameters, with its learning rate `lr` and the
    names of its `tables`. A backward uses the rate that its group holds then, so schedulers work
    as with any optimizer of PyTorch's; `step` and `zero_grad` update nothing.

    Parameters
    ----------
    module : mpembed.torch module
        The kernel's.
    shards : sequence of Shard
        What it holds.

    Notes
    -----
    Its state has the rate of each table, so that a checkpoint has the rates however tables are
    dealt to ranks and grouped there.

    A group's ``params`` are empty tensors that stand for tables, by the keys that TorchRec gives
    weights. What an optimizer keeps for each row is part of the rows' state, not of this one's.
    """

    def __init__(self, module: Any, shards: Sequence[Shard]) -> None:
        self._fused: list[Optimizer] = []
        names: list[list[str]] = []
        optimizers = module.tables.optimizers
        for shard in shards:
            optimizer = optimizers[shard.key]
            if optimizer is None:
                continue
            if not any(one is optimizer for one in self._fused):
                self._fused.append(optimizer)
                names.append([])
            number = next(i for i, one in enumerate(self._fused) if one is optimizer)
            if shard.table not in names[number]:
                names[number].append(shard.table)
        # A column shard has its table's name once more, and is trained alike.
        params = {
            f"{name}.weight": torch.empty(0, device="cpu") for group in names for name in group
        }
        groups = [
            {
                "params": [params[f"{name}.weight"] for name in group],
                "lr": optimizer.lr,
                "tables": list(group),
            }
            for group, optimizer in zip(names, self._fused, strict=True)
        ]
        super().__init__(params, {}, groups)
        module.attach_optimizer(self, range(len(groups)))

    # ---- what a backward of mpembed.torch asks of an optimizer -------------------------------

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled: never."""
        return False

    @property
    def defers(self) -> bool:
        """Whether updates wait for `step`: never."""
        return False

    def unscale(self, grad: Tensor) -> Tensor | None:
        """Return a gradient as it is."""
        return grad

    def apply_lr(self, group: int) -> None:
        """Give the learning rate of a group to the tables of the group."""
        rate = float(list(self.param_groups)[group]["lr"])
        if rate != self._fused[group].lr:
            self._fused[group].lr = rate

    # ---- state -------------------------------------------------------------------------------

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """The rates by what stands for a table: new tensors, of which the last are loaded into."""
        self._rates = {
            param: {"lr": torch.tensor(float(group["lr"]), dtype=torch.float64)}
            for group in self.param_groups
            for param in group["params"]
        }
        return self._rates

    @state.setter
    def state(self, given: Any) -> None:
        """Keep nothing: the groups have the rates."""

    def post_load_state_dict(self) -> None:
        """Take the rates over that were loaded; ValueError where a group's tables have several."""
        for number, group in enumerate(self.param_groups):
            rates = {float(self._rates[param]["lr"]) for param in group["params"]}
            if len(rates) > 1:
                raise ValueError(
                    f"the tables {group['tables']} share an optimizer here, and have the rates "
                    f"{sorted(rates)} in the state: give them optimizers of their own"
                )
            group["lr"] = rates.pop()
            self.apply_lr(number)

    # ---- what TorchRec asks ------------------------------------------------------------------

    def step(self, closure: Any = None) -> None:
        """Apply the learning rates; the rows were updated by the backward."""
        for number in range(len(self._fused)):
            self.apply_lr(number)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Apply the learning rates; the backward has used the gradients up."""
        self.step()
