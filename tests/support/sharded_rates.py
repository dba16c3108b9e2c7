"""Learning rates on several ranks; `ranks.run` calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sharded_models as models
import torch
from sharded_models import Batch, Held
from sharded_training import sharder
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage


def train(
    rank: int, world_size: int, plan: Any, options: Any, batches: Sequence[Batch], how: str
) -> tuple[list[Held], list[list[float]]]:
    """Train with a rate that halves after each step; return what the rank holds, and the rates."""
    model = models.sharded(models.collection(), sharder("adagrad", options), plan)
    optimizer: Any = model.fused_optimizer
    if how == "combined":
        optimizer = CombinedOptimizer([optimizer])
    scheduler = None
    if how == "warmup":
        stage = WarmupStage(policy=WarmupPolicy.STEP, max_iters=100, value=0.5, decay_iters=1)
        optimizer = WarmupOptimizer(optimizer, [stage], lr=0.1)
    elif how != "by hand":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    rates = []
    for one in batches:
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        if how != "by hand":
            optimizer.zero_grad()
        models.train(model, [one])
        if how == "by hand":
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        else:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return models.all_held(model), rates


def describe(rank: int, world_size: int, plan: Any, options: Any) -> Any:
    """Return what TorchRec sees of the optimizer: groups, keys, state, and its text."""
    model = models.sharded(models.collection(), sharder("adagrad", options), plan)
    optimizer = model.fused_optimizer
    groups = [(group["lr"], group["tables"]) for group in optimizer.param_groups]
    optimizer.save_param_groups(True)
    state = optimizer.state_dict()
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    optimizer.load_state_dict(state)
    again = [(group["lr"], group["tables"]) for group in optimizer.param_groups]
    return groups, sorted(optimizer.params), state["state"], repr(optimizer), again
