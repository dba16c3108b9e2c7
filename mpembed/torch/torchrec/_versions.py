"""What depends on TorchRec's version: its private hooks, each used here and nowhere else.

Made for TorchRec 1.8.0; the tests also pass with 1.5.1, 1.7.0 and 1.9.2. Releases before 1.5 have
other signatures. Importing this with a release outside of that range warns, and a missing name
raises ImportError.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

#: The releases that the tests have run with, from the oldest to the newest.
TESTED = ("1.5.1", "1.7.0", "1.8.0", "1.9.2")
_HOW = (
    "pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu with CUDA), then "
    "torchmetrics tensordict iopath pyre-extensions tqdm"
)

try:
    import torchrec
    from torchrec.distributed.embedding import (
        EmbeddingCollectionSharder,
        ShardedEmbeddingCollection,
    )
    from torchrec.distributed.embedding_kernel import BaseEmbedding
    from torchrec.distributed.embedding_lookup import (
        GroupedEmbeddingsLookup,
        GroupedPooledEmbeddingsLookup,
    )
    from torchrec.distributed.embedding_types import (
        EmbeddingComputeKernel,
        GroupedEmbeddingConfig,
        ShardedEmbeddingTable,
    )
    from torchrec.distributed.embeddingbag import (
        EmbeddingBagCollectionSharder,
        ShardedEmbeddingBagCollection,
    )
    from torchrec.distributed.types import (
        ParameterSharding,
        ShardingEnv,
        ShardingEnv2D,
        ShardingType,
    )
    from torchrec.modules.embedding_configs import (
        BaseEmbeddingConfig,
        DataType,
        PoolingType,
    )
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.optim.fused import EmptyFusedOptimizer, FusedOptimizer, FusedOptimizerModule
    from torchrec.optim.keyed import KeyedOptimizer
    from torchrec.sparse.tensor_dict import maybe_td_to_kjt
except ImportError as error:
    raise ImportError(
        f"mpembed.torch.torchrec needs TorchRec {TESTED[0]} to {TESTED[-1]} and FBGEMM: {error}. "
        f"Install them with {_HOW}; in one process mpembed.torch works without TorchRec"
    ) from error

__all__ = [
    "CUSTOMIZED",
    "TESTED",
    "BaseEmbedding",
    "BaseEmbeddingConfig",
    "DataType",
    "EmbeddingBagCollection",
    "EmbeddingBagCollectionSharder",
    "EmbeddingCollection",
    "EmbeddingCollectionSharder",
    "EmptyFusedOptimizer",
    "FusedOptimizer",
    "FusedOptimizerModule",
    "GroupedEmbeddingConfig",
    "GroupedEmbeddingsLookup",
    "GroupedPooledEmbeddingsLookup",
    "KeyedOptimizer",
    "ParameterSharding",
    "PoolingType",
    "ShardedEmbeddingBagCollection",
    "ShardedEmbeddingCollection",
    "ShardedEmbeddingTable",
    "ShardingEnv",
    "ShardingEnv2D",
    "ShardingType",
    "grouped_configs",
    "lookup_arguments",
    "maybe_td_to_kjt",
    "splits_rows",
]

#: TorchRec's name for a kernel of somebody else's; it then leaves rows and their state alone.
CUSTOMIZED: str = EmbeddingComputeKernel.CUSTOMIZED_KERNEL.value
#: Sharding types with rows of a table on several ranks, whose pooled outputs are then added.
_SPLIT_ROWS = (
    ShardingType.ROW_WISE,
    ShardingType.TABLE_ROW_WISE,
    ShardingType.GRID_SHARD,
)


def warn_of_version(found: str) -> None:
    """Warn where a release of TorchRec is older or newer than those that the tests run with."""
    if not _numbers(TESTED[0]) <= _numbers(found) <= _numbers(TESTED[-1]):
        warnings.warn(
            f"mpembed.torch.torchrec is tested with TorchRec {', '.join(TESTED)}, not {found}: "
            "compare a short training with one process, or install a tested release",
            stacklevel=2,
        )


def _numbers(release: str) -> tuple[int, ...]:
    """Return a release's numbers; none where it has no such form."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return () if found is None else tuple(map(int, found.groups()))


def splits_rows(sharding_type: str) -> bool:
    """Whether a sharding type puts rows of a table on several ranks."""
    return sharding_type in [one.value for one in _SPLIT_ROWS]


def grouped_configs(sharding: Any, sharding_type: str) -> list[GroupedEmbeddingConfig]:
    """Return the groups of shards that an ``EmbeddingSharding`` puts on this rank."""
    if sharding_type in (ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value):
        found: list[GroupedEmbeddingConfig] = sharding._grouped_embedding_configs_per_rank[
            sharding._rank
        ]
    else:
        found = sharding._grouped_embedding_configs
    return found


def lookup_arguments(sharding: Any, sharding_type: str) -> dict[str, Any]:
    """Return the arguments of TorchRec's grouped lookups, as ``create_lookup`` passes them."""
    return {
        "grouped_configs": grouped_configs(sharding, sharding_type),
        "device": sharding._device,
        "pg": sharding._pg,
        "env": sharding._env,
    }


warn_of_version(getattr(torchrec, "__version__", "an unknown release"))
