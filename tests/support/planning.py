"""Planners of mpembed's tables, in this process and on several ranks."""

from __future__ import annotations

from typing import Any

from sharded_models import Table, collection
from torchrec.distributed.planner.types import (
    KernelConfig,
    Topology,
    TopologyFactory,
    TrainerConfig,
)

import mpembed as mpe
from mpembed.torch.torchrec import MpembedSharder
from mpembed.torch.torchrec.planner import MpembedShardingPlanner

GIB = 1 << 30
#: 14.6 GB in FP32 with a state a row, 3 GB in int4 with 5 % cached.
LARGE = tuple(Table(f"t{i}", 14_000_000, 64, (f"f{i}",)) for i in range(4))


def topology(memory: int, world: int = 2, device: str = "cpu") -> Topology:
    """Return some ranks with so much memory each."""
    caps = {"hbm_cap_bytes": memory, "ddr_cap_bytes": memory}
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world, local_world_size=world, **caps),
        kernel_config=KernelConfig(compute_device=device),
    )


def sharder(**options: Any) -> MpembedSharder:
    """Return a sharder of int4 rows with 5 % cached, or with other options."""
    given = {"precision": "int4", "cache": mpe.CacheConfig(load_factor=0.05), **options}
    return MpembedSharder(mpe.RowwiseAdagrad(lr=0.1), **given)


def plan_together(rank: int, world: int, memory: int, precision: str) -> Any:
    """Return the ranks of each of `LARGE`, planned by all."""
    planner = MpembedShardingPlanner(topology(memory, world), 512)
    plan = planner.collective_plan(collection(LARGE), [sharder(precision=precision, cache=None)])
    return {name: one.ranks for name, one in plan.plan[""].items()}


def plan_without_optimizer(rank: int, world: int) -> None:
    """Plan what no collection can have."""
    planner = MpembedShardingPlanner(topology(GIB, world), 512)
    planner.collective_plan(collection(LARGE), [MpembedSharder()])


def plan_by_default(rank: int, world: int) -> Any:
    """Return the ranks that a planner uses that is told nothing."""
    plan = MpembedShardingPlanner(batch_size=512).collective_plan(collection(LARGE), [sharder()])
    return sorted(rank for one in plan.plan[""].values() for rank in one.ranks)
