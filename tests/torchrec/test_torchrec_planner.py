"""What TorchRec's planner is told of mpembed's tables, and the plans that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import planning
import ranks
import sharded_models
from planning import GIB, LARGE, sharder, topology
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingType

import mpembed as mpe
from mpembed.torch.torchrec import MpembedSequenceSharder, MpembedSharder, TableSettings
from mpembed.torch.torchrec._planner_versions import check_estimators
from mpembed.torch.torchrec.planner import MpembedEnumerator, MpembedShardingPlanner

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
Table = sharded_models.Table


def only(*types: ShardingType, tables: Any = LARGE) -> dict[str, ParameterConstraints]:
    kinds = [one.value for one in types]
    return {one.name: ParameterConstraints(sharding_types=kinds) for one in tables}


def storages(
    tables: Any, given: MpembedSharder, kind: ShardingType, device: str = "cpu", world: int = 2
) -> dict[str, list[Any]]:
    """Return what each shard of each table is estimated to take, for a batch of one bag a rank."""
    where = topology(1 << 40, world, device)
    options = MpembedEnumerator(where, 1, only(kind, tables=tables)).enumerate(
        sharded_models.collection(tables), [given]
    )
    return {one.name: [shard.storage for shard in one.shards] for one in options}


def plan_of(given: MpembedSharder, memory: int = GIB, **options: Any) -> Any:
    planner = MpembedShardingPlanner(topology(memory), 512, **options)
    return planner.plan(sharded_models.collection(LARGE), [given]).plan[""]


def test_int4_with_a_cache_fits_where_fp32_does_not() -> None:
    planner = EmbeddingShardingPlanner(
        topology(2 * GIB), 512, storage_reservation=FixedPercentageStorageReservation(0)
    )
    with pytest.raises(PlannerError, match="insufficient storage"):
        planner.plan(sharded_models.collection(LARGE), [EmbeddingBagCollectionSharder()])
    plan = plan_of(sharder(), 2 * GIB)
    assert set(plan) == {one.name for one in LARGE}
    assert {one.compute_kernel for one in plan.values()} == {"customized_kernel"}


def test_fp32_rows_of_ours_do_not_fit_either() -> None:
    with pytest.raises(PlannerError, match="insufficient storage"):
        plan_of(sharder(precision="fp32", cache=None), 2 * GIB)


def test_rows_are_split_on_the_cpu() -> None:
    plan = plan_of(sharder(), 2 * GIB, constraints=only(ShardingType.ROW_WISE))
    for one in plan.values():
        assert one.sharding_type == "row_wise"
        assert [shard.shard_sizes for shard in one.sharding_spec.shards] == [[7_000_000, 64]] * 2


def test_columns_are_split_only_where_constraints_say_so() -> None:
    every = MpembedEnumerator(topology(GIB)).enumerate(
        sharded_models.collection(LARGE), [sharder()]
    )
    assert {one.sharding_type for one in every} == {"table_wise", "row_wise", "table_row_wise"}
    plan = plan_of(sharder(), 2 * GIB, constraints=only(ShardingType.COLUMN_WISE))
    assert {one.sharding_type for one in plan.values()} == {"column_wise"}


MIXED = (
    Table("a", 40_000, 16, ("f0",)),
    Table("b", 9_000, 64, ("f1", "f2")),
    Table("c", 30_000, 64, ("f3",)),
)
OWN = {"c": TableSettings(precision="int8", optimizer=mpe.Adam(lr=0.1, state_precision="bf16"))}


@pytest.mark.parametrize("kind", [ShardingType.TABLE_WISE, ShardingType.ROW_WISE])
@pytest.mark.parametrize("policy", [None, "lru", "lfu"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "int2"])
def test_estimates_are_what_collections_count(
    precision: str, policy: str | None, kind: ShardingType
) -> None:
    cache = None if policy is None else mpe.CacheConfig(load_factor=0.05, policy=policy)
    given = sharder(precision=precision, cache=cache, tables=OWN)
    found = storages(MIXED, given, kind)
    rows = storages(MIXED, sharder(precision="fp32", cache=None), kind)
    for table in MIXED:
        own: dict[str, Any] = {"precision": precision, "optimizer": mpe.RowwiseAdagrad(lr=0.1)}
        if table.name == "c":
            own = {"precision": "int8", "optimizer": OWN["c"].optimizer}
        parts = len(found[table.name])
        config = mpe.TableConfig("t", table.rows // parts, table.dim, **own)
        counted = mpe.EmbeddingBagCollection([config], cache=cache).memory_report()["total"]
        # Inputs and outputs of a batch are beside the table in both.
        fp32 = mpe.TableConfig("t", table.rows // parts, table.dim)
        plain = mpe.EmbeddingBagCollection([fp32], optimizer=mpe.RowwiseAdagrad(lr=0.1))
        buffers = rows[table.name][0].ddr - plain.memory_report()["total"]
        assert 0 < buffers < 4096
        for shard in found[table.name]:
            assert shard.hbm == 0
            assert shard.ddr - buffers == pytest.approx(counted, rel=0.02)


def test_buffers_of_a_batch_are_those_of_torchrec() -> None:
    where, tables = topology(1 << 40), sharded_models.TABLES
    module = sharded_models.collection(tables)
    kinds = [ShardingType.TABLE_WISE, ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE]
    asked = {
        one.name: ParameterConstraints(
            sharding_types=[kind.value for kind in kinds], pooling_factors=[7.0] * len(one.features)
        )
        for one in tables
    }
    plain = EmbeddingEnumerator(where, 100, asked).enumerate(
        module, [EmbeddingBagCollectionSharder()]
    )
    ours = MpembedEnumerator(where, 100, asked).enumerate(module, [MpembedSharder(mpe.SGD(lr=0.1))])
    sizes = {
        (one.name, one.sharding_type): [
            shard.storage.ddr - 4 * shard.size[0] * shard.size[1] for shard in one.shards
        ]
        for one in plain
    }
    statistics = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 0, 1)], optimizer=mpe.SGD(lr=0.1)
    ).memory_report()["statistics"]
    checked = 0
    for one in ours:
        if (one.name, one.sharding_type) in sizes:
            found = [
                shard.storage.ddr - 4 * shard.size[0] * shard.size[1] - statistics
                for shard in one.shards
            ]
            assert found == sizes[one.name, one.sharding_type]
            checked += 1
    assert checked >= len(tables)


def test_a_cache_of_fixed_sets_is_shared_out() -> None:
    tables = (Table("a", 3000, 64, ("f0",)), Table("b", 1000, 64, ("f1",)))
    fixed = mpe.CacheConfig(num_sets=40)
    config = [mpe.TableConfig("t", 1, 64, precision="int4")]
    emb = mpe.EmbeddingBagCollection(config, cache=fixed, optimizer=mpe.RowwiseAdagrad(lr=0.1))
    whole = sum(emb.memory_report()["caches"]["64.rowwise_adagrad"].values())
    with_cache = storages(tables, sharder(cache=fixed), ShardingType.ROW_WISE)
    without = storages(tables, sharder(cache=None), ShardingType.ROW_WISE)
    for rank in range(2):
        caches = [with_cache[name][rank].ddr - without[name][rank].ddr for name in ("a", "b")]
        assert sum(caches) == pytest.approx(whole, rel=0.02)
        assert caches[0] == pytest.approx(3 * caches[1], rel=0.05)


def test_on_a_gpu_tables_take_its_memory_or_the_hosts() -> None:
    tables = (Table("a", 50_000, 64, ("f0",)), Table("b", 50_000, 64, ("f1",)))
    given = sharder(tables={"b": TableSettings(placement="host")})
    found = storages(tables, given, ShardingType.TABLE_WISE, "cuda")
    (on_device,), (on_host,) = found["a"], found["b"]
    assert on_device.ddr == 0
    assert on_host.ddr >= 50_000 * 40  # 36 bytes of int4 and 4 of Adagrad
    assert on_device.hbm - on_host.hbm == pytest.approx(on_host.ddr, rel=0.001)
    assert on_host.hbm >= 2_500 * 264  # slots


def test_a_cache_reads_rows_of_fp32_and_packed_rows_are_read_without_one() -> None:
    def forward(**options: Any) -> float:
        asked = only(ShardingType.ROW_WISE)
        found = MpembedEnumerator(topology(1 << 40), 512, asked).enumerate(
            sharded_models.collection(LARGE), [sharder(**options)]
        )
        return float(found[0].shards[0].perf.fwd_compute)

    cached, packed, fp32 = forward(), forward(cache=None), forward(precision="fp32", cache=None)
    assert packed < fp32 == cached


def test_tables_without_pooling_are_planned() -> None:
    given = MpembedSequenceSharder(
        mpe.RowwiseAdagrad(lr=0.1), precision="int4", cache=mpe.CacheConfig(load_factor=0.05)
    )
    planner = MpembedShardingPlanner(topology(2 * GIB), 512)
    plan = planner.plan(sharded_models.sequences(LARGE), [given]).plan[""]
    assert set(plan) == {one.name for one in LARGE}
    bags, sequences = (
        MpembedEnumerator(topology(1 << 40), 512, only(ShardingType.TABLE_WISE)).enumerate(*one)
        for one in (
            (sharded_models.collection(LARGE), [sharder()]),
            (sharded_models.sequences(LARGE), [given]),
        )
    )
    assert [o.shards[0].storage for o in bags] == [o.shards[0].storage for o in sequences]


def test_another_kernel_of_that_name_is_refused() -> None:
    class Foreign(EmbeddingBagCollectionSharder):  # type: ignore[misc]
        def compute_kernels(self, *_: Any) -> list[str]:
            return ["customized_kernel"]

    enumerator = MpembedEnumerator(topology(GIB))
    with pytest.raises(ValueError, match="give the planner an MpembedSharder"):
        enumerator.enumerate(sharded_models.collection(LARGE), [Foreign()])


def test_tables_of_other_sharders_keep_torchrecs_estimates() -> None:
    where = topology(1 << 40)
    module, theirs = sharded_models.collection(LARGE), [EmbeddingBagCollectionSharder()]
    found = MpembedEnumerator(where, 512).enumerate(module, theirs)
    expected = EmbeddingEnumerator(where, 512).enumerate(module, theirs)
    assert [(o.storage_hash(), o.shards) for o in found] == [
        (o.storage_hash(), o.shards) for o in expected
    ]


def test_all_ranks_get_the_plan_of_the_first(tmp_path: Path) -> None:
    found = ranks.run(planning.plan_together, 2, tmp_path, 2 * GIB, "int4")
    one, other = ranks.succeed(found)
    assert one == other
    assert set(one) == {table.name for table in LARGE}


def test_all_ranks_raise_what_the_first_does(tmp_path: Path) -> None:
    found = ranks.run(planning.plan_together, 2, tmp_path, 2 * GIB, "fp32")
    assert [one.kind for one in found] == ["PlannerError"] * 2
    assert all("insufficient storage" in one.message for one in found)


def test_what_is_not_a_planner_error_names_itself_on_the_other_ranks(tmp_path: Path) -> None:
    first, second = ranks.run(planning.plan_without_optimizer, 2, tmp_path)
    assert first.kind == "ValueError"
    assert second.kind == "RuntimeError"
    assert second.message == f"planning failed on the first rank: ValueError: {first.message}"
    assert "table 't0' has no optimizer: give the sharder one" in first.message


def test_the_topology_is_that_of_the_process_group(tmp_path: Path) -> None:
    one, other = ranks.succeed(ranks.run(planning.plan_by_default, 2, tmp_path))
    assert one == other
    assert set(one) == {0, 1}


def test_estimators_of_older_releases_are_refused() -> None:
    class Estimator:
        def estimate(self, sharding_options: Any, sharder_map: Any = None) -> None:
            """Estimate, told of no settings."""

    with pytest.raises(ImportError, match=r"needs TorchRec 1\.7\.0 or newer.*this is \d"):
        check_estimators(Estimator)


def test_without_a_process_group_the_way_out_is_named() -> None:
    with pytest.raises(ValueError, match="topology is needed"):
        MpembedShardingPlanner()
    planner = MpembedShardingPlanner(topology(GIB))
    with pytest.raises(RuntimeError, match=r"use plan\(module, sharders\)"):
        planner.collective_plan(sharded_models.collection(LARGE), [sharder()])
