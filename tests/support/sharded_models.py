"""Models of TorchRec's tables on several ranks, and the same tables in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed import sharding_plan
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import torchrec as mtr

CPU = torch.device("cpu")
#: Of a batch, by the feature: a plan decides in which order TorchRec returns them.
Outputs = dict[str, Tensor]


class Table(NamedTuple):
    """A table: rows, columns, features, pooling."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    pooling: str = "sum"


TABLES = (
    Table("t0", 100, 8, ("f0", "f2")),
    Table("t1", 50, 8, ("f1",)),
    Table("t2", 7, 12, ("f3",)),
)
KINDS = {
    "tw": sharding_plan.table_wise,
    "rw": sharding_plan.row_wise,
    "cw": sharding_plan.column_wise,
    "twrw": sharding_plan.table_row_wise,
    "grid": sharding_plan.grid_shard,
    "dp": sharding_plan.data_parallel,
}


def collection(tables: Sequence[Table] = TABLES, is_weighted: bool = False) -> Any:
    """Return TorchRec's collection on the meta device."""
    configs = [
        EmbeddingBagConfig(
            name=one.name,
            num_embeddings=one.rows,
            embedding_dim=one.dim,
            feature_names=list(one.features),
            pooling=PoolingType(one.pooling.upper()),
        )
        for one in tables
    ]
    return EmbeddingBagCollection(configs, is_weighted=is_weighted, device=torch.device("meta"))


def sequences(tables: Sequence[Table] = TABLES) -> Any:
    """Return TorchRec's collection without pooling on the meta device."""
    configs = [
        EmbeddingConfig(
            name=one.name,
            num_embeddings=one.rows,
            embedding_dim=one.dim,
            feature_names=list(one.features),
        )
        for one in tables
    ]
    return EmbeddingCollection(configs, device=torch.device("meta"))


def sharded(
    module: nn.Module,
    sharder: Any,
    plan: Mapping[str, tuple[str, dict[str, Any]]],
    local_size: int | None = None,
) -> DistributedModelParallel:
    """Return a collection on all ranks; `plan` has of each table a key of KINDS and arguments."""
    size = dist.get_world_size()
    local_size = local_size or size
    generators = {name: KINDS[kind](**given) for name, (kind, given) in plan.items()}
    made = sharding_plan.construct_module_sharding_plan(
        module,
        generators,
        sharder=sharder,
        local_size=local_size,
        world_size=size,
        device_type="cpu",
    )
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=CPU,
        plan=ShardingPlan({"": made}),
        sharders=[sharder],
    )


def table_wise(world_size: int, tables: Sequence[Table] = TABLES) -> dict[str, Any]:
    """Return a plan that deals the tables to the ranks."""
    return {one.name: ("tw", {"rank": i % world_size}) for i, one in enumerate(tables)}


def row_wise(tables: Sequence[Table] = TABLES) -> dict[str, Any]:
    """Return a plan that splits every table by its rows."""
    return {one.name: ("rw", {}) for one in tables}


class Batch(NamedTuple):
    """Bags of every feature: lengths (F, B), a list of values a feature, weights likewise."""

    keys: list[str]
    lengths: Tensor
    values: list[Tensor]
    weights: list[Tensor] | None

    def jagged(self, bags: slice = slice(None)) -> KeyedJaggedTensor:
        """Return some bags of every feature."""
        values, weights = [], []
        for k in range(len(self.keys)):
            ends = [0, *np.cumsum(self.lengths[k]).tolist()]
            start, stop, _ = bags.indices(self.lengths.shape[1])
            part = slice(ends[start], ends[stop])
            values.append(self.values[k][part])
            if self.weights is not None:
                weights.append(self.weights[k][part])
        return KeyedJaggedTensor.from_lengths_sync(
            self.keys,
            torch.cat(values),
            self.lengths[:, bags].reshape(-1),
            torch.cat(weights) if weights else None,
        )


def batch(
    seed: int,
    size: int,
    tables: Sequence[Table] = TABLES,
    longest: int = 3,
    weighted: bool = False,
) -> Batch:
    """Return a random batch; features of a shared name take the rows that all its tables have."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, int] = {}
    for one in tables:
        for name in one.features:
            rows[name] = min(one.rows, rows.get(name, one.rows))
    keys = sorted(rows)
    lengths = torch.randint(0, longest + 1, (len(keys), size), generator=generator)
    values = [
        torch.randint(0, rows[key], (int(lengths[k].sum()),), generator=generator)
        for k, key in enumerate(keys)
    ]
    weights = [torch.rand(len(one), generator=generator) for one in values] if weighted else None
    return Batch(keys, lengths, values, weights)


def local(rank: int, world_size: int, size: int) -> slice:
    """Return a rank's bags of a batch."""
    share = size // world_size
    return slice(rank * share, (rank + 1) * share)


def squared(pooled: Any, scale: float = 1.0) -> Tensor:
    """Return half the sum of squares: each row's gradient is its bags' outputs."""
    result: Tensor = pooled.values().square().sum() * (0.5 * scale)
    return result


def squared_sequences(outputs: Mapping[str, Any], scale: float = 1.0) -> Tensor:
    """Return half the sum of squares of all rows."""
    every = torch.cat([one.values().view(-1) for one in outputs.values()])
    return every.square().sum() * (0.5 * scale)


def unsharded(
    tables: Sequence[Table], optimizer: Any, precision: str, **options: Any
) -> mt.EmbeddingBagCollection:
    """Return mpembed's own module in this process."""
    configs = [
        mpe.TableConfig(one.name, one.rows, one.dim, precision, one.pooling) for one in tables
    ]
    features = {one.name: list(one.features) for one in tables}
    settings: dict[str, Any] = {"seed": 0, **options}
    return mt.EmbeddingBagCollection(
        configs, optimizer=optimizer, feature_names=features, **settings
    )


def unsharded_sequences(
    tables: Sequence[Table], optimizer: Any, precision: str
) -> mt.EmbeddingCollection:
    """Return mpembed's own module without pooling in this process."""
    configs = [mpe.TableConfig(one.name, one.rows, one.dim, precision, "none") for one in tables]
    features = {one.name: list(one.features) for one in tables}
    return mt.EmbeddingCollection(configs, optimizer=optimizer, feature_names=features, seed=0)


class Held(NamedTuple):
    """What a shard holds: packed rows and values (rows, columns), states by name."""

    table: str
    first_row: int
    first_column: int
    packed: Any
    values: Any
    states: dict[str, Any]


def held(table: str, tables: Any, key: str, first_row: int = 0, first_column: int = 0) -> Held:
    """Return what a collection holds of one of its tables."""
    ids = np.arange(next(one.num_embeddings for one in tables.tables if one.name == key))
    packed, values, states = tables.export(key), tables.rows(key, ids), tables.state(key, ids)
    return Held(table, first_row, first_column, packed, values, states)


def all_held(model: Any) -> list[Held]:
    """Return what all shards of a rank hold."""
    return [
        held(one.table, one.collection, one.key, one.first_row, one.first_column)
        for one in shards(model)
    ]


def set_rows(model: Any, table: str, values: Any) -> None:
    """Set the rows of a table (rows, columns) that a rank has."""
    for one in shards(model):
        if one.table == table and one.num_rows:
            rows = slice(one.first_row, one.first_row + one.num_rows)
            columns = slice(one.first_column, one.first_column + one.embedding_dim)
            own = np.ascontiguousarray(values[rows, columns])
            one.collection.set_rows(one.key, np.arange(one.num_rows), own)


def values_of(results: Sequence[Sequence[Held]], table: str, rows: int, columns: int) -> Any:
    """Return the values (rows, columns) of a table from shards of any shape."""
    found = np.full((rows, columns), np.nan, np.float32)
    for own in results:
        for one in own:
            if one.table == table:
                (height, width), top, left = one.values.shape, one.first_row, one.first_column
                assert np.isnan(found[top : top + height, left : left + width]).all()
                found[top : top + height, left : left + width] = one.values
    assert not np.isnan(found).any()
    return found


def joined(results: Sequence[Sequence[Held]], table: str) -> Held:
    """Return a table from its shards by rows on several ranks."""
    parts = sorted(
        (one for own in results for one in own if one.table == table), key=lambda p: p[1]
    )
    states = {name: np.concatenate([one.states[name] for one in parts]) for name in parts[0].states}
    packed = np.concatenate([one.packed for one in parts])
    return Held(table, 0, 0, packed, np.concatenate([one.values for one in parts]), states)


def same_bytes(one: Held, other: Held) -> bool:
    """Whether two tables have the same packed rows, values and states."""
    arrays = [(one.packed, other.packed), (one.values, other.values)]
    arrays += [(one.states[name], other.states[name]) for name in other.states]
    return set(one.states) == set(other.states) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in arrays
    )


def shards(model: DistributedModelParallel) -> list[mtr.Shard]:
    """Return what a rank holds of a model that is a collection."""
    return list(model.module.shards())


def outputs_of(pooled: Any) -> Outputs:
    """Return copies of the outputs."""
    return {name: one.detach().clone() for name, one in pooled.to_dict().items()}


def whole(results: Sequence[Outputs]) -> Outputs:
    """Return the outputs of a batch from those of the ranks."""
    return {name: torch.cat([one[name] for one in results]) for name in results[0]}


def train(
    model: DistributedModelParallel, batches: Sequence[Batch], loss: Any = squared
) -> list[Outputs]:
    """Train on a rank's share of batches; return its outputs."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found = []
    for one in batches:
        pooled = model(one.jagged(local(rank, size, one.lengths.shape[1])))
        found.append(outputs_of(pooled))
        loss(pooled).backward()
    return found


def train_alone(
    module: mt.EmbeddingBagCollection, batches: Sequence[Batch], scale: float, loss: Any = squared
) -> list[Outputs]:
    """Train on whole batches; the loss of each is scaled as TorchRec scales gradients."""
    found = []
    for one in batches:
        pooled = module(one.jagged())
        found.append(outputs_of(pooled))
        loss(pooled, scale).backward()
    return found
