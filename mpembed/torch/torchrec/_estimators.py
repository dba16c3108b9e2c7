"""The sizes and times of mpembed's tables, as TorchRec's planner asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel

from mpembed.torch.torchrec._checks import configs_of
from mpembed.torch.torchrec._planner_versions import (
    BIGINT_DTYPE,
    EmbeddingPerfEstimator,
    EmbeddingPerfEstimatorConfig,
    EmbeddingStorageEstimator,
    ParameterConstraints,
    PipelineType,
    SharderData,
    ShardEstimator,
    ShardingOption,
    ShardPerfContext,
    Storage,
    Topology,
    calculate_shard_storages,
    get_embedding_perf_sharding_evaluator,
    get_num_poolings,
)
from mpembed.torch.torchrec._settings import FUSED_PARAM, SharderSettings
from mpembed.torch.torchrec._shard_sizes import (
    ShardBytes,
    read_bytes,
    shard_bytes,
    table_settings,
)
from mpembed.torch.torchrec._versions import CUSTOMIZED

Constraints = Mapping[str, ParameterConstraints]
_FLOAT32 = 4  # bytes; a lookup's outputs and their gradients


class MpembedStorageEstimator(ShardEstimator):  # type: ignore[misc]
    """The memory of shards: mpembed's tables and caches, with TorchRec's buffers of a batch.

    TorchRec's ``EmbeddingStorageEstimator`` counts FP32 rows for every table. It still estimates
    tables of other kernels.

    Parameters
    ----------
    topology : Topology
        The devices.
    constraints : mapping of table name -> ParameterConstraints, optional
        As in TorchRec's planner.
    pipeline_type : PipelineType
        Which pipeline keeps buffers of a batch, as in TorchRec's estimator.
    run_embedding_at_peak_memory : bool
        As in TorchRec's estimator.

    Notes
    -----
    A cache of a fixed number of sets (``CacheConfig(num_sets=)``) belongs to all tables of a rank
    with the same columns and kind of optimizer. A shard is charged a part: its rows, times the
    number of ranks, of the rows of all such tables in its module, and at most all of the cache.
    """

    def __init__(
        self,
        topology: Topology,
        constraints: Constraints | None = None,
        pipeline_type: PipelineType = PipelineType.NONE,
        run_embedding_at_peak_memory: bool = False,
    ) -> None:
        self._topology = topology
        self._constraints = None if constraints is None else dict(constraints)
        self._pipeline, self._at_peak = pipeline_type, run_embedding_at_peak_memory
        self._others = EmbeddingStorageEstimator(
            topology, self._constraints, pipeline_type, run_embedding_at_peak_memory
        )

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Set ``storage`` of each option's shards.

        Raises
        ------
        ValueError
            For a table of another sharder than mpembed's, or one that has no optimizer.
        """
        ours, others = _split(sharding_options)
        self._others.estimate(others, sharder_data_map)
        for option in ours:
            data = sharder_data_map[option.module_type_key]
            settings = _settings(option, data)
            for shard, buffers in zip(option.shards, self._buffers(option, data), strict=True):
                shard.storage = buffers + self._held(option, settings, *shard.size)

    def _held(
        self, option: ShardingOption, settings: SharderSettings, rows: int, columns: int
    ) -> Storage:
        """Return what a shard itself takes."""
        own = table_settings(settings, option.name)
        sizes = shard_bytes(
            own,
            settings.cache,
            rows,
            columns,
            share=self._share(option, settings, rows),
            aligned=self._topology.compute_device != "cpu",
        )
        return self._placed(sizes, own.placement)

    def _placed(self, sizes: ShardBytes, placement: str) -> Storage:
        on_host = self._topology.compute_device == "cpu"
        table_on_host = on_host or placement == "host"
        ddr = (sizes.table if table_on_host else 0) + (sizes.cache if on_host else 0)
        return Storage(hbm=sizes.table + sizes.cache - ddr, ddr=ddr)

    def _share(self, option: ShardingOption, settings: SharderSettings, rows: int) -> float:
        """Return the part of a rank's cache that a shard is charged; see the class's notes."""
        if settings.cache is None or settings.cache.num_sets is None:
            return 1.0  # the cache grows with the rows
        own = table_settings(settings, option.name)
        columns = option.tensor.shape[1]
        kind = None if own.optimizer is None else own.optimizer.kind
        total: int = 0
        for config in configs_of(option.module[1]):
            other = table_settings(settings, config.name).optimizer
            if config.embedding_dim == columns and (other and other.kind) == kind:
                total += config.num_embeddings
        share: float = max(rows, 1) * self._topology.world_size / max(total, 1)
        return min(1.0, share)

    def _buffers(self, option: ShardingOption, data: SharderData) -> list[Storage]:
        """Return TorchRec's bytes of inputs and outputs alone, by its own rule.

        It has no function of its own for them. So it is asked about a table of a byte a value and
        without an optimizer, and those bytes are taken off.
        """
        found = (self._constraints or {}).get(option.name)
        given = found.batch_sizes if found is not None else None
        storages = calculate_shard_storages(
            sharder_data=data,
            sharding_type=option.sharding_type,
            tensor=torch.empty(option.tensor.shape, dtype=torch.int8, device="meta"),
            compute_device=self._topology.compute_device,
            compute_kernel=EmbeddingComputeKernel.FUSED.value,
            shard_sizes=[shard.size for shard in option.shards],
            batch_sizes=given or [option.batch_size] * option.num_inputs,
            world_size=self._topology.world_size,
            local_world_size=self._topology.intra_group_size,
            input_lengths=option.input_lengths,
            num_poolings=get_num_poolings(self._constraints, option),
            caching_ratio=1.0,
            is_pooled=option.is_pooled,
            input_data_type_size=BIGINT_DTYPE,
            output_data_type_size=_FLOAT32,
            pipeline_type=self._pipeline,
            count_ephemeral_storage_cost=self._at_peak,
        )
        on_host = self._topology.compute_device == "cpu"
        buffers = []
        for shard, storage in zip(option.shards, storages, strict=True):
            values = shard.size[0] * shard.size[1]
            stand_in = Storage(hbm=0 if on_host else values, ddr=values if on_host else 0)
            buffers.append(storage - stand_in)
        return buffers


class MpembedPerfConfig(EmbeddingPerfEstimatorConfig):  # type: ignore[misc]
    """TorchRec's coefficients and bandwidths, for mpembed's kernels those of its fused ones."""

    name = "mpembed"

    def get_device_bw(self, compute_device: str, compute_kernel: str, *rest: Any) -> float | None:
        """Return the bandwidth of the memory in bytes a millisecond, as TorchRec has it."""
        kernel = EmbeddingComputeKernel.FUSED.value if compute_kernel == CUSTOMIZED else None
        found: float | None = super().get_device_bw(compute_device, kernel or compute_kernel, *rest)
        return found


class MpembedPerfEstimator(ShardEstimator):  # type: ignore[misc]
    """The time of shards: TorchRec's formulas with the bytes that mpembed's kernels read of a row.

    With a cache these are the bytes of an FP32 row, as if all rows hit; without one those of the
    packed row. The formulas' constants are TorchRec's, measured on its kernels, not on mpembed's.

    Parameters
    ----------
    topology : Topology
        The devices and their bandwidths.
    constraints : mapping of table name -> ParameterConstraints, optional
        As in TorchRec's planner.
    """

    def __init__(self, topology: Topology, constraints: Constraints | None = None) -> None:
        self._topology = topology
        self._constraints = None if constraints is None else dict(constraints)
        self._config = MpembedPerfConfig()
        self._others = EmbeddingPerfEstimator(topology, self._constraints, config=self._config)

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Set ``perf`` of each option's shards; ValueError as `MpembedStorageEstimator`'s."""
        ours, others = _split(sharding_options)
        self._others.estimate(others, sharder_data_map)
        for option in ours:
            data = sharder_data_map[option.module_type_key]
            settings = _settings(option, data)
            own = table_settings(settings, option.name)
            contexts = ShardPerfContext.build_shard_perf_contexts(
                self._config,
                [shard.size for shard in option.shards],
                option,
                self._topology,
                self._constraints,
                data,
            )
            evaluator = get_embedding_perf_sharding_evaluator(option.sharding_type, False)
            for shard, context in zip(option.shards, contexts, strict=True):
                option.is_weighted = context.is_weighted
                columns = max(context.emb_dim, 1)
                nbytes = read_bytes(own, settings.cache, columns)
                context.table_data_type_size = nbytes / columns
                shard.perf = evaluator.compute_perf(context, self._config)


def _split(
    options: Iterable[ShardingOption],
) -> tuple[list[ShardingOption], list[ShardingOption]]:
    """Return the options with mpembed's kernel, and the others."""
    given = list(options)
    return (
        [one for one in given if one.compute_kernel == CUSTOMIZED],
        [one for one in given if one.compute_kernel != CUSTOMIZED],
    )


def _settings(option: ShardingOption, data: SharderData) -> SharderSettings:
    settings = data.fused_params.get(FUSED_PARAM)
    if not isinstance(settings, SharderSettings):
        raise ValueError(
            f"table {option.name!r} has the compute kernel {CUSTOMIZED!r} of another sharder than "
            "mpembed's: give the planner an MpembedSharder for its module"
        )
    return settings
