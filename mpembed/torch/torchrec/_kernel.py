"""The kernels: a group of TorchRec's shards in one collection of mpembed's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mpembed import torch as modules
from mpembed.collection import EmbeddingBagCollection
from mpembed.torch.torchrec._optimizer import MpembedFusedOptimizer
from mpembed.torch.torchrec._settings import FUSED_PARAM, ModuleSettings
from mpembed.torch.torchrec._shards import Shard, shards_of
from mpembed.torch.torchrec._versions import (
    BaseEmbedding,
    EmptyFusedOptimizer,
    FusedOptimizerModule,
    GroupedEmbeddingConfig,
    KeyedOptimizer,
    PoolingType,
)


class PlacedFeatures:
    """A group's features, named by their places: names of features and tables may repeat.

    It has the methods of a KeyedJaggedTensor that `mpembed.torch` reads.
    """

    def __init__(self, keys: list[str], features: Any) -> None:
        self._keys, self._features = keys, features

    def keys(self) -> list[str]:
        """Return the names."""
        return self._keys

    def values(self) -> Tensor:
        """Return the indices (N,), feature by feature."""
        found: Tensor = self._features.values()
        return found

    def offsets(self) -> Tensor:
        """Return where each bag begins, and the end: (F * B + 1,)."""
        found: Tensor = self._features.offsets()
        return found

    def weights_or_none(self) -> Tensor | None:
        """Return the weights (N,), if there are any."""
        found: Tensor | None = self._features.weights_or_none()
        return found


class MpembedKernel(BaseEmbedding, FusedOptimizerModule):  # type: ignore[misc]
    """What `PooledKernel` and `SequenceKernel` share.

    Parameters
    ----------
    config : GroupedEmbeddingConfig
        The shards of a group on this rank.
    device : torch.device or None
        Where they lie; None is the CPU.
    pooling : str
        ``"sum"``, ``"mean"`` or ``"none"``.
    """

    def __init__(
        self, config: GroupedEmbeddingConfig, device: torch.device | None, pooling: str
    ) -> None:
        super().__init__()
        settings: ModuleSettings = config.fused_params[FUSED_PARAM]
        device = torch.device("cpu") if device is None else device
        self._group = config
        self._shards = tuple(shards_of(config.embedding_tables, settings, pooling, device))
        self._names = _placed(config.feature_names())
        names = iter(self._names)
        by_key = {
            shard.key: [next(names) for _ in range(table.num_features())]
            for shard, table in zip(self._shards, config.embedding_tables, strict=True)
        }
        self._inner = self._module(self.collection, by_key)
        self._inner.calls.sharded = True
        self._fused_optimizer: KeyedOptimizer = (
            MpembedFusedOptimizer(self._inner, self._shards)
            if any(self.collection.optimizers.values())
            else EmptyFusedOptimizer()
        )

    def _module(self, collection: EmbeddingBagCollection, names: dict[str, list[str]]) -> Any:
        """Return the module of mpembed's that looks up."""
        raise NotImplementedError

    @property
    def collection(self) -> EmbeddingBagCollection:
        """The tables."""
        return self._shards[0].collection

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the group's order."""
        return self._shards

    @property
    def config(self) -> GroupedEmbeddingConfig:
        """TorchRec's description of the group."""
        return self._group

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The learning rates; TorchRec puts those of all kernels together."""
        return self._fused_optimizer

    def _look_up(self, features: Any) -> Any:
        """Look up; an index out of range names the rows of its shard and the rank's batch."""
        try:
            return self._inner(PlacedFeatures(self._names, features))
        except IndexError as error:
            raise IndexError(f"{error}. {self._where(str(error))}") from None

    def _where(self, error: str) -> str:
        """Say what rows the shard of an error has, and whose batch it was."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        split = "".join(
            f", which has {shard.num_rows} of the {shard.total_rows} rows of {shard.table!r}, from "
            f"{shard.first_row} on, and counts them from 0"
            for shard in self._shards
            if shard.num_rows < shard.total_rows and f"table {shard.key!r}" in error
        )
        return f"This is rank {rank}{split}; the batch is that of all ranks"

    # ---- what TorchRec asks of a kernel ------------------------------------------------------

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return nothing: packed rows are no weights, and `shards` has them."""
        return {} if destination is None else destination

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield nothing: rows are no parameters of PyTorch's."""
        yield from ()

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield nothing."""
        yield from ()

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield nothing."""
        yield from ()

    def flush(self) -> None:
        """Do nothing: a state has the cache's rows as they are, and flushing would round them."""

    def purge(self) -> None:
        """Do nothing: loading a state sets the cache."""


class PooledKernel(MpembedKernel):
    """The kernel of pooled tables; `rows_split` says that other ranks have rows of theirs."""

    def __init__(
        self, config: GroupedEmbeddingConfig, device: torch.device | None, *, rows_split: bool
    ) -> None:
        mean = config.pooling == PoolingType.MEAN and not rows_split
        super().__init__(config, device, "mean" if mean else "sum")

    def _module(self, collection: EmbeddingBagCollection, names: dict[str, list[str]]) -> Any:
        return modules.EmbeddingBagCollection.from_collection(
            collection, feature_names=names, is_weighted=self._group.is_weighted
        )

    def forward(self, features: Any) -> Tensor:
        """Look up and pool.

        Parameters
        ----------
        features : KeyedJaggedTensor
            The group's features, of B bags each.

        Returns
        -------
        Tensor (B, columns of all features)
            A block of columns a feature, in the group's order.
        """
        found: Tensor = self._look_up(features).values()
        return found


class SequenceKernel(MpembedKernel):
    """The kernel of tables without pooling."""

    def __init__(self, config: GroupedEmbeddingConfig, device: torch.device | None) -> None:
        super().__init__(config, device, "none")

    def _module(self, collection: EmbeddingBagCollection, names: dict[str, list[str]]) -> Any:
        return modules.EmbeddingCollection.from_collection(collection, feature_names=names)

    def forward(self, features: Any) -> Tensor:
        """Look up a row for each index.

        Parameters
        ----------
        features : KeyedJaggedTensor
            The group's features, N indices in all.

        Returns
        -------
        Tensor (N, columns)
            In the order of the indices.
        """
        parts = [one.values() for one in self._look_up(features).values()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _placed(features: list[str]) -> list[str]:
    """Return a different name for each place: the feature's, numbered where it repeats."""
    found: list[str] = []
    for name in features:
        placed, number = name, 1
        while placed in found:
            number += 1
            placed = f"{name} ({number})"
        found.append(placed)
    return found
