"""Train TorchRec's DLRM on several ranks, with mpembed's tables in INT4.

    torchrun --standalone --nproc-per-node 2 examples/torchrec_dlrm.py [STEPS [PRECISION]]

The model is TorchRec's, its collection on the device "meta". Only the sharder is mpembed's. The
items are split by rows; the other tables lie whole on one rank each.
"""

import gc
import os
import sys

import torch
from torch import distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

import mpembed as mpe
from mpembed.torch.torchrec import MpembedSharder, ShardedMpembedEmbeddingBagCollection

ROWS = {"item": 50_000, "user": 20_000, "shop": 500}
DIM, DENSE, BATCH, CPU = 16, 4, 256, torch.device("cpu")


class Clicks:
    """Synthetic clicks: each id has an effect on the log odds, and popular ids come often."""

    def __init__(self, rank: int) -> None:
        self._draws = torch.Generator().manual_seed(rank)
        effects = torch.Generator().manual_seed(1_000)  # the same on all ranks
        self._effects = {
            name: 1.5 * torch.randn(rows, generator=effects) for name, rows in ROWS.items()
        }

    def batch(self) -> "Batch":
        """Return dense features, ids and labels of BATCH clicks."""
        dense = torch.rand(BATCH, DENSE, generator=self._draws)
        odds, lengths, values = dense.sum(1) - DENSE / 2, [], []
        for name, rows in ROWS.items():
            most = 3 if name == "item" else 1  # the last items that a user has seen
            length = torch.randint(1, most + 1, (BATCH,), generator=self._draws)
            share = torch.rand(int(length.sum()), generator=self._draws)
            ids = (rows * share**4).long()
            bags = torch.repeat_interleave(torch.arange(BATCH), length)
            odds.index_add_(0, bags, self._effects[name][ids])
            lengths.append(length)
            values.append(ids)
        labels = torch.bernoulli(torch.sigmoid(odds), generator=self._draws)
        features = KeyedJaggedTensor(list(ROWS), torch.cat(values), lengths=torch.cat(lengths))
        return Batch(dense, features, labels)


class Batch(Pipelineable):  # type: ignore[misc]
    """What TorchRec's models and pipelines take."""

    def __init__(
        self, dense: torch.Tensor, features: KeyedJaggedTensor, labels: torch.Tensor
    ) -> None:
        self.dense_features, self.sparse_features, self.labels = dense, features, labels

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return it on a device."""
        parts = self.dense_features, self.sparse_features, self.labels
        return Batch(*(part.to(device, non_blocking=non_blocking) for part in parts))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until a stream has used it."""
        for part in (self.dense_features, self.sparse_features, self.labels):
            part.record_stream(stream)


def sharded_model(precision: str, world_size: int) -> DistributedModelParallel:
    """Return the model, with this rank's shards of its tables."""
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=DIM, feature_names=[name])
        for name, rows in ROWS.items()
    ]
    tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
    torch.manual_seed(0)
    model = DLRMTrain(
        DLRM(tables, DENSE, dense_arch_layer_sizes=[32, DIM], over_arch_layer_sizes=[32, 1])
    )
    sharder = MpembedSharder(
        mpe.RowwiseAdagrad(lr=0.05),
        precision=precision,
        cache=mpe.CacheConfig(load_factor=0.05, policy="lfu"),
    )
    plan = construct_module_sharding_plan(
        tables,
        {
            "item": row_wise(),
            "user": table_wise(rank=0),
            "shop": table_wise(rank=world_size - 1),
        },
        sharder=sharder,
        local_size=world_size,
        world_size=world_size,
        device_type="cpu",
    )
    return DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=CPU,
        plan=ShardingPlan({"model.sparse_arch.embedding_bag_collection": plan}),
        sharders=[sharder],
    )


def train(model: DistributedModelParallel, steps: int, rank: int) -> list[float]:
    """Train; return the loss of each step."""
    dense = {name: one for name, one in model.named_parameters() if one.numel() > 0}
    fused = model.fused_optimizer
    own = KeyedOptimizerWrapper(dense, lambda params: torch.optim.Adagrad(params, lr=0.05))
    schedule = torch.optim.lr_scheduler.LinearLR(fused, 1.0, 0.2, total_iters=steps)
    pipeline = TrainPipelineSparseDist(
        model, CombinedOptimizer([fused, own]), CPU, execute_all_batches=True
    )
    clicks = Clicks(rank)
    batches = (clicks.batch() for _ in range(steps))
    losses = []
    for _ in range(steps):
        loss, _logits, _labels = pipeline.progress(batches)
        losses.append(float(loss))
        schedule.step()
    return losses


def megabytes(model: nn.Module) -> tuple[float, float]:
    """Return the megabytes of this rank's tables, and of the same with FP32 rows."""
    sharded = [m for m in model.modules() if isinstance(m, ShardedMpembedEmbeddingBagCollection)]
    reports = [kernel.collection.memory_report() for one in sharded for kernel in one.kernels()]
    own, fp32 = (sum(one[key] for one in reports) / 1e6 for key in ("total", "fp32_total"))
    return own, fp32


def trained(steps: int, precision: str, rank: int, world_size: int) -> str:
    """Make a model, train it, and return a line about it."""
    model = sharded_model(precision, world_size)
    losses, tenth = train(model, steps, rank), max(steps // 10, 1)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    own, fp32 = megabytes(model)
    return f"rank {rank}: loss {first:.3f} -> {last:.3f}, tables {own:.2f} MB, in FP32 {fp32:.2f}"


def main(steps: int = 150, precision: str = "int4") -> None:
    """Train on the ranks that torchrun has started, and print what became of it."""
    if "RANK" not in os.environ:
        sys.exit("start it with: torchrun --standalone --nproc-per-node 2 " + sys.argv[0])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    lines: list[str] = [""] * world_size
    dist.all_gather_object(lines, trained(steps, precision, rank, world_size))
    if rank == 0:
        print("\n".join(lines), flush=True)
    # Gloo's threads end with the last reference to the group, and the model's cycles have some. A
    # thread that lets go of a tensor while the interpreter ends would abort the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 150, *given[1:])
