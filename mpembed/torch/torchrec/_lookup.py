"""TorchRec's lookups of all groups of a sharding type, with mpembed's kernels."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from mpembed.torch.torchrec._kernel import PooledKernel, SequenceKernel
from mpembed.torch.torchrec._versions import (
    GroupedEmbeddingConfig,
    GroupedEmbeddingsLookup,
    GroupedPooledEmbeddingsLookup,
    lookup_arguments,
    splits_rows,
)


def _refuse_prefetch() -> NoReturn:
    raise RuntimeError(
        "mpembed's kernels do not prefetch in TorchRec's pipeline: use TrainPipelineSparseDist in "
        "place of PrefetchTrainPipelineSparseDist"
    )


class MpembedPooledLookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """The pooled lookup of one sharding type."""

    def __init__(self, rows_split: bool, **arguments: Any) -> None:
        self._rows_split = rows_split
        super().__init__(**arguments)

    def _create_embedding_kernel(
        self, config: GroupedEmbeddingConfig, device: torch.device | None, *_: Any
    ) -> PooledKernel:
        return PooledKernel(config, device, rows_split=self._rows_split)

    def prefetch(self, sparse_features: Any, forward_stream: Any = None) -> None:
        """Refuse: RuntimeError."""
        _refuse_prefetch()


class MpembedSequenceLookup(GroupedEmbeddingsLookup):  # type: ignore[misc]
    """The lookup without pooling of one sharding type."""

    def _create_embedding_kernel(
        self, config: GroupedEmbeddingConfig, pg: Any, device: torch.device | None, *_: Any
    ) -> SequenceKernel:
        return SequenceKernel(config, device)

    def prefetch(self, sparse_features: Any, forward_stream: Any = None) -> None:
        """Refuse: RuntimeError."""
        _refuse_prefetch()


def pooled_lookup(sharding: Any, sharding_type: str) -> MpembedPooledLookup:
    """Return the lookup of a sharding of ``ShardedEmbeddingBagCollection``."""
    arguments = lookup_arguments(sharding, sharding_type)
    return MpembedPooledLookup(splits_rows(sharding_type), **arguments)


def sequence_lookup(sharding: Any, sharding_type: str) -> MpembedSequenceLookup:
    """Return the lookup of a sharding of ``ShardedEmbeddingCollection``."""
    return MpembedSequenceLookup(**lookup_arguments(sharding, sharding_type))
