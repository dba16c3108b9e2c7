"""A small model of clicks on several ranks: TorchRec's tables, a dense layer, pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sharded_models as models
import torch
from sharded_models import Batch, Held
from sharded_training import sharder
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed import sharding_plan
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Clicks(Pipelineable):  # type: ignore[misc]
    """A batch of features and labels."""

    features: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Clicks:
        """Return the batch on a device."""
        return Clicks(self.features.to(device, non_blocking), self.labels.to(device))

    def record_stream(self, stream: Any) -> None:
        """Keep the memory until a stream has used it."""

    def pin_memory(self) -> Clicks:
        """Return the batch."""
        return self


class Model(nn.Module):
    """Logits of the sum of a dense layer over all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = models.collection()
        self.over = nn.Linear(sum(one.dim * len(one.features) for one in models.TABLES), 1)

    def forward(self, clicks: Clicks) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits."""
        logits = self.over(self.tables(clicks.features).values()).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, clicks.labels)
        return loss, logits


def clicks(rank: int, world_size: int, batches: Sequence[Batch]) -> Iterator[Clicks]:
    """Yield a rank's share of batches, with a label that the first feature decides."""
    for one in batches:
        bags = models.local(rank, world_size, one.lengths.shape[1])
        yield Clicks(one.jagged(bags), (one.lengths[0, bags] % 2).float())


def made(own: Any, plan: Mapping[str, Any]) -> DistributedModelParallel:
    """Return the model on all ranks; the dense layer starts alike on each."""
    torch.manual_seed(0)
    model, size = Model(), dist.get_world_size()
    generators = {name: models.KINDS[kind](**given) for name, (kind, given) in plan.items()}
    of_tables = sharding_plan.construct_module_sharding_plan(
        model.tables, generators, sharder=own, local_size=size, world_size=size, device_type="cpu"
    )
    return DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=models.CPU,
        plan=ShardingPlan({"tables": of_tables}),
        sharders=[own],
    )


def optimizer_of(model: DistributedModelParallel) -> CombinedOptimizer:
    """Return the fused optimizer with that of the dense layer, as TorchRec's examples do."""
    dense = {name: one for name, one in model.named_parameters() if "over" in name}
    own = KeyedOptimizerWrapper(dense, lambda params: torch.optim.SGD(params, lr=0.1))
    return CombinedOptimizer([model.fused_optimizer, own])


def quantised(precision: str | None) -> Any:
    """Return TorchRec's quantised communication, such as ``"BF16"``."""
    if precision is None:
        return None
    kind = CommType[precision]
    return get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=kind, backward_precision=kind), device=models.CPU
    )


def train(
    rank: int,
    world_size: int,
    plan: Mapping[str, Any],
    options: Mapping[str, Any],
    batches: Sequence[Batch],
    pipelined: bool = False,
    comms: str | None = None,
) -> tuple[list[float], list[Held], list[Tensor]]:
    """Train; return the losses, what the rank holds, and the dense weights."""
    registry = quantised(comms)
    model = made(sharder("adagrad", {**options, "qcomm_codecs_registry": registry}), plan)
    optimizer, losses = optimizer_of(model), []
    if pipelined:
        pipeline = TrainPipelineSparseDist(model, optimizer, models.CPU, execute_all_batches=True)
        data = clicks(rank, world_size, batches)
        for _ in batches:
            losses.append(pipeline.progress(data).sum().item())
    else:
        for one in clicks(rank, world_size, batches):
            optimizer.zero_grad()
            loss, logits = model(one)
            loss.backward()
            optimizer.step()
            losses.append(logits.sum().item())
    kept = [
        models.held(one.table, one.collection, one.key, one.first_row, one.first_column)
        for one in model.module.tables.shards()
    ]
    return losses, kept, [one.detach().clone() for one in model.module.over.parameters()]


def learn(
    rank: int, world_size: int, plan: Mapping[str, Any], options: Mapping[str, Any], comms: Any
) -> list[float]:
    """Train on four batches again and again; return the losses."""
    registry = quantised(comms)
    model = made(sharder("adagrad", {**options, "qcomm_codecs_registry": registry}), plan)
    optimizer, losses = optimizer_of(model), []
    batches = [models.batch(seed, 32) for seed in range(4)]
    for _ in range(30):
        for one in clicks(rank, world_size, batches):
            optimizer.zero_grad()
            loss, _ = model(one)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses
