"""What mpembed's kernels cannot do in TorchRec, refused by name before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch

from mpembed.torch.torchrec._versions import (
    CUSTOMIZED,
    BaseEmbeddingConfig,
    DataType,
    ParameterSharding,
    ShardingEnv2D,
    ShardingType,
)

#: What a plan may say of FBGEMM's kernels, and what says it here.
_FOR_FBGEMM = {
    "cache_params": "give the sharder cache=mpembed.CacheConfig(...)",
    "enforce_hbm": "give the table TableSettings(placement=...)",
    "stochastic_rounding": "give the sharder rounding=...",
    "bounds_check_mode": "give the sharder bounds='raise' or 'drop'",
    "output_dtype": "leave it out, outputs are float32 (qcomm_codecs_registry sends less)",
    "key_value_params": "give the table TableSettings(placement='host')",
}


def configs_of(module: Any) -> list[BaseEmbeddingConfig]:
    """Return the configurations of the tables of an unsharded collection of either kind."""
    pooled = hasattr(module, "embedding_bag_configs")
    found = module.embedding_bag_configs() if pooled else module.embedding_configs()
    return list(found)


def refuse_to_move() -> NoReturn:
    """Refuse to move shards while training: RuntimeError."""
    raise RuntimeError(
        "mpembed's shards do not move between ranks while a model trains: save a checkpoint, "
        "and load it with the other plan"
    )


def checked_plan(
    module: Any, plan: Mapping[str, ParameterSharding], env: Any
) -> dict[str, ParameterSharding]:
    """Return the plan with mpembed's kernel for every table.

    Raises
    ------
    ValueError
        If the plan, the tables' configurations or the environment ask for what mpembed does not do.
    """
    if isinstance(env, ShardingEnv2D):
        raise ValueError(
            "mpembed's tables have no replicas: use DistributedModelParallel in place of "
            "DMPCollection (2D parallelism)"
        )
    if module.device.type != "meta":
        raise ValueError(
            f"the collection has weights on {module.device}, which mpembed would not use: make it "
            "with device='meta', and set rows after sharding"
        )
    for config in configs_of(module):
        _check_config(config)
    parameters = {name.split(".")[-2]: one for name, one in module.named_parameters()}
    for name, one in plan.items():
        _check_sharding(name, one)
        if getattr(parameters.get(name), "_optimizer_classes", None):
            raise ValueError(
                f"table {name!r} has an optimizer of apply_optimizer_in_backward: leave that out, "
                "and give the sharder optimizer= or the table TableSettings(optimizer=...)"
            )
    return {name: replace(one, compute_kernel=CUSTOMIZED) for name, one in plan.items()}


def _check_config(config: BaseEmbeddingConfig) -> None:
    name = config.name
    if config.data_type != DataType.FP32:
        raise ValueError(
            f"data_type of table {name!r} must be FP32, got {config.data_type}: the sharder's "
            "precision= says how mpembed stores rows"
        )
    made = config.init_fn
    by_default = isinstance(made, partial) and made.func is torch.nn.init.uniform_
    if made is not None and not by_default:
        raise ValueError(
            f"init_fn of table {name!r} is not used by mpembed's kernels: leave it out, and give "
            "TableSettings(init=...), or set rows after sharding"
        )
    for option in ("use_virtual_table", "enable_embedding_update", "num_embeddings_post_pruning"):
        if getattr(config, option, None):
            raise ValueError(
                f"{option} of table {name!r} is not supported by mpembed's kernels: leave it out"
            )


def _check_sharding(name: str, one: ParameterSharding) -> None:
    if one.sharding_type == ShardingType.DATA_PARALLEL.value:
        raise ValueError(
            f"table {name!r} is planned data_parallel, and mpembed's tables have no replicas: plan "
            "it table_wise, or leave it in another collection with TorchRec's own sharder"
        )
    for option, way_out in _FOR_FBGEMM.items():
        if getattr(one, option, None) is not None:
            raise ValueError(
                f"{option} of table {name!r} in the plan is for FBGEMM's kernels: {way_out}"
            )


def refuse_variable_batch(features: Any) -> None:
    """Raise ValueError for features of different batch sizes."""
    if features.variable_stride_per_key():
        raise ValueError(
            "features of different batch sizes (stride_per_key_per_rank) are not supported by "
            "mpembed's kernels: give all features one batch size"
        )
