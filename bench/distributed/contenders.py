"""The contenders: each is built on all ranks and makes a training step of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from distributed import formula
from distributed.cases import OURS, PLAIN, ROWS, TORCHREC, Setting
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv, ShardingPlan

import mpembed as mpe
from mpembed.torch.distributed import DistributedEmbeddingBagCollection, RowWise, TableWise
from mpembed.torch.torchrec import MpembedSharder

LR, EPS = 0.05, 1e-8
FEATURES = [f"f{number}" for number in range(len(ROWS))]
TABLES = [f"t{number}" for number in range(len(ROWS))]


@dataclass(frozen=True)
class Contender:
    """One of the comparison.

    Attributes
    ----------
    name, mode : str
        Of `CONTENDERS` and `MODES`.
    step : callable
        A step of a batch: forward, backward with the update.
    held : callable
        Bytes of rows, states and caches on this rank.
    expected : callable
        Bytes that a step sends from this rank to others, by a formula.
    """

    name: str
    mode: str
    step: Callable[[Any], None]
    held: Callable[[], int]
    expected: Callable[[], float]


def batch(found: Sequence[npt.NDArray[Any]], length: int) -> KeyedJaggedTensor:
    """Return a batch of TorchRec's from the indices of each table."""
    values = torch.cat([torch.from_numpy(one) for one in found])
    lengths = torch.full((len(values) // length,), length, dtype=torch.int32)
    return KeyedJaggedTensor(FEATURES, values, lengths=lengths)


def make(name: str, mode: str, setting: Setting) -> Contender:
    """Return a contender on this rank; all ranks call it."""
    makers = {TORCHREC: _torchrec, OURS: _ours, PLAIN: _plain}
    return makers[name](mode, setting)


def _owners(world: int) -> list[int]:
    """Return which rank has which table, so that their rows are about as many: largest first."""
    loads = [0] * world
    owners = []
    for rows in ROWS:
        least = loads.index(min(loads))
        loads[least] += rows
        owners.append(least)
    return owners


def _sharded(sharder: Any, mode: str, setting: Setting, *, ours: bool) -> Any:
    configs = [
        EmbeddingBagConfig(
            name=table, num_embeddings=rows, embedding_dim=setting.dim, feature_names=[feature]
        )
        for table, feature, rows in zip(TABLES, FEATURES, ROWS, strict=True)
    ]
    module = EmbeddingBagCollection(configs, device=torch.device("meta"))
    # By default TorchRec takes a kernel that makes a gradient of every row of a table.
    kernel = {"compute_kernel": "customized_kernel" if ours else "fused"}
    per_table: dict[str, Any] = {
        table: sharding_plan.row_wise(**kernel)
        if mode == "row-wise"
        else sharding_plan.table_wise(rank=owner, **kernel)
        for table, owner in zip(TABLES, _owners(setting.world), strict=True)
    }
    plan = sharding_plan.construct_module_sharding_plan(
        module,
        per_table,
        sharder=sharder,
        local_size=setting.world,
        world_size=setting.world,
        device_type="cpu",
    )
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan({"": plan}),
        sharders=[sharder],
    )


def _expected(mode: str, setting: Setting) -> Callable[[], float]:
    """Return what TorchRec sends; each rank has its part."""
    count = len(ROWS)
    found = formula.torchrec(
        mode, setting.world, setting.batch, count, count * setting.dim, setting.length
    )
    return lambda: found.total / setting.world


def _train(model: Any) -> Callable[[Any], None]:
    """Return a step whose gradient is the output itself, so that little else is timed."""

    def step(features: Any) -> None:
        output = model(features).values()
        output.backward(output.detach())

    return step


def _torchrec(mode: str, setting: Setting) -> Contender:
    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": LR,
        "eps": EPS,
    }
    model = _sharded(EmbeddingBagCollectionSharder(fused_params=fused), mode, setting, ours=False)

    def held() -> int:
        states = model.fused_optimizer.state_dict()["state"].values()
        return _held_here([model.state_dict(), *states])

    return Contender(TORCHREC, mode, _train(model), held, _expected(mode, setting))


def _held_here(dicts: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes of this rank's parts of tensors."""
    total = 0
    for one in (value for found in dicts for value in found.values()):
        parts = [part.tensor for part in one.local_shards()] if hasattr(one, "local_shards") else []
        total += sum(part.nbytes for part in parts)
    return total


def _settings(setting: Setting) -> tuple[Any, Any]:
    cache = mpe.CacheConfig(load_factor=setting.cache, policy="lfu") if setting.cache else None
    return mpe.RowwiseAdagrad(lr=LR, eps=EPS), cache


def _ours(mode: str, setting: Setting) -> Contender:
    optimizer, cache = _settings(setting)
    sharder = MpembedSharder(optimizer, precision=setting.precision, cache=cache)
    model = _sharded(sharder, mode, setting, ours=True)

    def held() -> int:
        collections = {id(one.collection): one.collection for one in model.module.shards()}
        return sum(one.memory_report()["total"] for one in collections.values())

    return Contender(OURS, mode, _train(model), held, _expected(mode, setting))


def _plain(mode: str, setting: Setting) -> Contender:
    optimizer, cache = _settings(setting)
    tables = [
        mpe.TableConfig(table, rows, setting.dim, precision=setting.precision)
        for table, rows in zip(TABLES, ROWS, strict=True)
    ]
    owners = _owners(setting.world)
    plan = {
        table: RowWise(float(setting.length)) if mode == "row-wise" else TableWise(owner)
        for table, owner in zip(TABLES, owners, strict=True)
    }
    model = DistributedEmbeddingBagCollection(
        tables,
        plan,
        optimizer=optimizer,
        feature_names={table: [name] for table, name in zip(TABLES, FEATURES, strict=True)},
        cache=cache,
        seed=0,
    )

    def held() -> int:
        return int(model.local.memory_report()["total"])

    def expected() -> float:
        return float(model.wire_bytes(setting.bags, float(setting.length)))

    return Contender(PLAIN, mode, _train(model), held, expected)
