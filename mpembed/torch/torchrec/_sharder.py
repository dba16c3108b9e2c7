"""What users give to ``torchrec.distributed.DistributedModelParallel``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import torch

from mpembed import registry
from mpembed.config import CacheConfig
from mpembed.optim import Optimizer
from mpembed.torch.torchrec._checks import refuse_to_move
from mpembed.torch.torchrec._settings import FUSED_PARAM, SharderSettings, TableSettings
from mpembed.torch.torchrec._sharded import (
    ShardedMpembedEmbeddingBagCollection,
    ShardedMpembedEmbeddingCollection,
)
from mpembed.torch.torchrec._versions import (
    CUSTOMIZED,
    EmbeddingBagCollection,
    EmbeddingBagCollectionSharder,
    EmbeddingCollection,
    EmbeddingCollectionSharder,
    ParameterSharding,
    ShardingEnv,
    ShardingType,
)

Sharded = TypeVar(
    "Sharded", ShardedMpembedEmbeddingBagCollection, ShardedMpembedEmbeddingCollection
)


class _Settings:
    """What both sharders say to TorchRec's planner."""

    settings: SharderSettings

    @cached_property
    def _unheard(self) -> set[str]:
        """Tables with settings that no collection has had so far."""
        return {name for name, _ in self.settings.tables}

    def _has_sharded(self, sharded: Sharded) -> Sharded:
        """Return a collection, whose first batch warns of settings for tables that nobody has."""
        self._unheard.difference_update(sharded.table_names)
        sharded.unheard = self._unheard
        return sharded

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the only kernel."""
        return [CUSTOMIZED]

    def reshard(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: RuntimeError."""
        refuse_to_move()


class MpembedSharder(_Settings, EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Shards a ``torchrec.EmbeddingBagCollection`` with mpembed's kernels.

    Give it to ``DistributedModelParallel(model, sharders=[...])`` and to the planner. The model
    keeps its ``torchrec.EmbeddingBagCollection(device="meta")``, whose weights are never made.

    Parameters
    ----------
    optimizer : mpembed.optim.Optimizer, optional
        What trains the rows, in the backward; its rate is the first one of the groups of
        ``model.fused_optimizer``. None where every table has one of its own or is frozen.
    precision : str
        Storage format of the rows, a key of ``mpembed.registry.FORMATS``.
    cache : mpembed.CacheConfig, optional
        One cache on each rank for each group of tables with the same columns and kind of optimizer.
    tables : mapping of table name -> TableSettings, optional
        What differs for some tables.
    seed : int
        All random bits come from it, and from the path of the collection in the model.
    rounding, bounds, on_nonfinite : str
        As in ``mpembed.EmbeddingBagCollection``.
    qcomm_codecs_registry : dict, optional
        Quantised communication, as in TorchRec.
    sharded_module_order_overwrite : list of str, optional
        As in TorchRec.

    Raises
    ------
    TypeError, ValueError
        For wrong settings.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        precision: str = "fp32",
        cache: CacheConfig | None = None,
        tables: Mapping[str, TableSettings] | None = None,
        seed: int = 0,
        rounding: str = registry.DEFAULT_ROUNDING,
        bounds: str = "raise",
        on_nonfinite: str = "raise",
        qcomm_codecs_registry: dict[str, Any] | None = None,
        sharded_module_order_overwrite: list[str] | None = None,
    ) -> None:
        self.settings = SharderSettings.checked(
            optimizer, precision, cache, tables, seed, rounding, bounds, on_nonfinite
        )
        super().__init__(
            fused_params={FUSED_PARAM: self.settings},  # for the planner's estimators
            qcomm_codecs_registry=qcomm_codecs_registry,
            sharded_module_order_overwrite=sharded_module_order_overwrite,
        )
        self._order = sharded_module_order_overwrite

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return what a plan may contain: all but ``data_parallel``, on every device."""
        return [one.value for one in ShardingType if one != ShardingType.DATA_PARALLEL]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedMpembedEmbeddingBagCollection:
        """Return the collection with this rank's shards; TorchRec calls it."""
        sharded = ShardedMpembedEmbeddingBagCollection(
            module,
            params,
            env,
            self.settings,
            device,
            module_fqn,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            sharded_module_order_overwrite=self._order,
        )
        return self._has_sharded(sharded)


class MpembedSequenceSharder(_Settings, EmbeddingCollectionSharder):  # type: ignore[misc]
    """Shards a ``torchrec.EmbeddingCollection`` with mpembed's kernels.

    Parameters
    ----------
    optimizer, precision, cache, tables, seed, rounding, bounds, on_nonfinite
        As in `MpembedSharder`.
    qcomm_codecs_registry : dict, optional
        Quantised communication, as in TorchRec.
    use_index_dedup : bool
        As in TorchRec: each rank sends an index once. Not on the CPU.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        precision: str = "fp32",
        cache: CacheConfig | None = None,
        tables: Mapping[str, TableSettings] | None = None,
        seed: int = 0,
        rounding: str = registry.DEFAULT_ROUNDING,
        bounds: str = "raise",
        on_nonfinite: str = "raise",
        qcomm_codecs_registry: dict[str, Any] | None = None,
        use_index_dedup: bool = False,
    ) -> None:
        self.settings = SharderSettings.checked(
            optimizer, precision, cache, tables, seed, rounding, bounds, on_nonfinite
        )
        super().__init__(
            fused_params={FUSED_PARAM: self.settings},  # for the planner's estimators
            qcomm_codecs_registry=qcomm_codecs_registry,
            use_index_dedup=use_index_dedup,
        )
        self._dedup = use_index_dedup

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return what a plan may contain."""
        return [
            ShardingType.TABLE_WISE.value,
            ShardingType.COLUMN_WISE.value,
            ShardingType.ROW_WISE.value,
        ]

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedMpembedEmbeddingCollection:
        """Return the collection with this rank's shards; TorchRec calls it."""
        if self._dedup and (device is None or device.type == "cpu"):
            raise ValueError(
                "use_index_dedup=True is for GPUs, FBGEMM has no such operator for the CPU: leave "
                "it out; mpembed looks up and updates a row of a batch once anyway"
            )
        sharded = ShardedMpembedEmbeddingCollection(
            module,
            params,
            env,
            self.settings,
            device,
            module_fqn,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            use_index_dedup=self._dedup,
        )
        return self._has_sharded(sharded)
