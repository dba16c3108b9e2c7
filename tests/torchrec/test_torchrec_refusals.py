"""What mpembed's kernels cannot do in TorchRec is refused by name, with the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import sharded_models as models
import torch
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import CacheParams, ShardingEnv, ShardingEnv2D
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

import mpembed as mpe
from mpembed.torch.torchrec import (
    MpembedSequenceSharder,
    MpembedSharder,
    TableSettings,
    _lookup,
    _versions,
)

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
TABLES = (models.Table("t0", 10, 4, ("f0",)),)


def shard(
    module: Any, kind: str = "tw", sharder: Any = None, env: Any = None, **changes: Any
) -> None:
    """Shard a module on the only rank, with a plan that is changed."""
    own = MpembedSharder(mpe.SGD(lr=0.1)) if sharder is None else sharder
    arguments = {"rank": 0} if kind == "tw" else {}
    plan = construct_module_sharding_plan(
        module,
        {"t0": models.KINDS[kind](**arguments)},
        sharder=own,
        local_size=1,
        world_size=1,
        device_type="cpu",
    )
    given: dict[str, Any] = {name: replace(one, **changes) for name, one in plan.items()}
    own.shard(module, given, ShardingEnv.from_local(1, 0) if env is None else env)


def config(**options: Any) -> Any:
    """Return a collection of one table with some option of its configuration."""
    given = {"name": "t0", "num_embeddings": 10, "embedding_dim": 4, "feature_names": ["f0"]}
    return EmbeddingBagCollection(
        [EmbeddingBagConfig(**{**given, **options})], device=torch.device("meta")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_params": CacheParams(load_factor=0.1)}, "cache=mpembed.CacheConfig"),
        ({"output_dtype": DataType.FP16}, "outputs are float32"),
        ({"stochastic_rounding": True}, "give the sharder rounding="),
        ({"enforce_hbm": True}, "placement="),
    ],
)
def test_a_plan_for_fbgemms_kernels_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(changes))} of table 't0' .*{message}"):
        shard(models.collection(TABLES), **changes)


def test_replicas_are_refused() -> None:
    with pytest.raises(ValueError, match="'t0' is planned data_parallel.*plan it table_wise"):
        shard(models.collection(TABLES), "dp")
    env = ShardingEnv2D.__new__(ShardingEnv2D)
    with pytest.raises(ValueError, match="use DistributedModelParallel"):
        shard(models.collection(TABLES), env=env)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_type": DataType.FP16}, "data_type of table 't0' must be FP32.*precision="),
        ({"init_fn": torch.nn.init.zeros_}, "init_fn of table 't0'.*TableSettings.init="),
        ({"num_embeddings_post_pruning": 5}, "num_embeddings_post_pruning of table 't0'"),
    ],
)
def test_a_configuration_that_would_not_be_used_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shard(config(**options))


def test_weights_that_would_be_lost_are_refused() -> None:
    module = EmbeddingBagCollection(
        [EmbeddingBagConfig(name="t0", num_embeddings=10, embedding_dim=4, feature_names=["f0"])]
    )
    with pytest.raises(ValueError, match="weights on cpu.*device='meta'"):
        shard(module)


def test_an_optimizer_of_torchrecs_is_refused() -> None:
    module = models.collection(TABLES)
    apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.1})
    with pytest.raises(ValueError, match="'t0' has an optimizer.*give the sharder optimizer="):
        shard(module)


def test_a_table_without_an_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'t0' has no optimizer: give the sharder one"):
        shard(models.collection(TABLES), sharder=MpembedSharder())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer must be an mpembed optimizer"),
        ({"precision": "int3"}, ValueError, "precision"),
        ({"cache": 0.1}, TypeError, "cache must be a CacheConfig"),
        ({"seed": -1}, ValueError, "seed"),
        ({"bounds": "clip"}, ValueError, "bounds"),
        ({"tables": {"t0": "int4"}}, TypeError, r"tables\['t0'\] must be a TableSettings"),
        ({"tables": {"t0": TableSettings(precision="int3")}}, ValueError, "table 't0'"),
        ({"tables": {"t0": TableSettings(lr=0.1, trainable=False)}}, ValueError, "is frozen"),
        ({"tables": {"t0": TableSettings(init=("normal", -1.0))}}, ValueError, "table 't0'"),
    ],
)
@pytest.mark.parametrize("sharder", [MpembedSharder, MpembedSequenceSharder])
def test_a_wrong_setting_is_refused(
    sharder: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        sharder(**options)


def test_index_deduplication_is_refused_on_the_cpu() -> None:
    sharder = MpembedSequenceSharder(mpe.SGD(lr=0.1), use_index_dedup=True)
    with pytest.raises(ValueError, match="use_index_dedup=True is for GPUs"):
        shard(models.sequences(TABLES), sharder=sharder)


def test_the_prefetching_pipeline_is_refused() -> None:
    for kind in (_lookup.MpembedPooledLookup, _lookup.MpembedSequenceLookup):
        lookup: Any = kind.__new__(kind)
        with pytest.raises(RuntimeError, match="use TrainPipelineSparseDist"):
            kind.prefetch(lookup, None)


def test_a_plan_on_the_cpu_may_split_rows_and_has_one_kernel() -> None:
    pooled = MpembedSharder(mpe.SGD(lr=0.1))
    sequences = MpembedSequenceSharder(mpe.SGD(lr=0.1))
    assert {"row_wise", "table_row_wise", "grid_shard"} < set(pooled.sharding_types("cpu"))
    for sharder in (pooled, sequences):
        assert "row_wise" in sharder.sharding_types("cpu")
        assert "data_parallel" not in sharder.sharding_types("cpu")
        assert sharder.compute_kernels("row_wise", "cpu") == ["customized_kernel"]


def test_shards_do_not_move() -> None:
    for kind in (MpembedSharder, MpembedSequenceSharder):
        with pytest.raises(RuntimeError, match="save a checkpoint"):
            kind(mpe.SGD(lr=0.1)).reshard(None, {}, None)


@pytest.mark.parametrize("release", ["1.4.0", "1.10.0", "2.0.0.dev20270101", "unknown"])
def test_another_release_of_torchrec_is_named(release: str) -> None:
    with pytest.warns(UserWarning, match=rf"tested with TorchRec 1\.5\.1, .*, not {release}"):
        _versions.warn_of_version(release)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("release", ["1.5.1", "1.6.0", "1.8.0+cpu", "1.9.2"])
def test_a_release_between_those_that_are_tested_is_taken(release: str) -> None:
    _versions.warn_of_version(release)
