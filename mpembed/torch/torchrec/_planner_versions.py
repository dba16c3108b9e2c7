"""What mpembed's planner uses of TorchRec's, which has changed from release to release."""

from __future__ import annotations

import inspect

import torchrec

OLDEST = "1.7.0"
_WHY = (
    f"mpembed.torch.torchrec.planner needs TorchRec {OLDEST} or newer, whose planner tells "
    "estimators the settings of a sharder; this is {found}{error}. With older ones, plan with "
    "torchrec.distributed.sharding_plan.construct_module_sharding_plan"
)

try:
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.constants import BATCH_SIZE, BIGINT_DTYPE
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
    from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
    from torchrec.distributed.planner.estimator.estimator import (
        EmbeddingPerfEstimator,
        get_embedding_perf_sharding_evaluator,
    )
    from torchrec.distributed.planner.estimator.types import ShardPerfContext
    from torchrec.distributed.planner.shard_estimators import (
        EmbeddingStorageEstimator,
        calculate_shard_storages,
    )
    from torchrec.distributed.planner.storage_reservations import (
        FixedPercentageStorageReservation,
    )
    from torchrec.distributed.planner.types import (
        KernelConfig,
        ParameterConstraints,
        PlannerError,
        PlannerErrorType,
        SharderData,
        ShardEstimator,
        ShardingOption,
        Storage,
        Topology,
        TopologyFactory,
        TrainerConfig,
    )
    from torchrec.distributed.planner.utils import get_num_poolings
    from torchrec.distributed.types import PipelineType
except ImportError as error:
    found = getattr(torchrec, "__version__", "an unknown release")
    raise ImportError(_WHY.format(found=found, error=f" ({error})")) from error

__all__ = [
    "BATCH_SIZE",
    "BIGINT_DTYPE",
    "OLDEST",
    "EmbeddingEnumerator",
    "EmbeddingPerfEstimator",
    "EmbeddingPerfEstimatorConfig",
    "EmbeddingShardingPlanner",
    "EmbeddingStorageEstimator",
    "FixedPercentageStorageReservation",
    "KernelConfig",
    "ParameterConstraints",
    "PipelineType",
    "PlannerError",
    "PlannerErrorType",
    "ShardEstimator",
    "ShardPerfContext",
    "SharderData",
    "ShardingOption",
    "Storage",
    "Topology",
    "TopologyFactory",
    "TrainerConfig",
    "calculate_shard_storages",
    "get_embedding_perf_sharding_evaluator",
    "get_num_poolings",
]


def check_estimators(estimator: type) -> None:
    """Raise ImportError where estimators are not told the settings of sharders."""
    if "sharder_data_map" not in inspect.signature(estimator.estimate).parameters:  # type: ignore[attr-defined]
        found = getattr(torchrec, "__version__", "an unknown release")
        raise ImportError(_WHY.format(found=found, error=""))


check_estimators(ShardEstimator)
