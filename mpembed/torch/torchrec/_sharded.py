"""Sharded collections: TorchRec's, with mpembed's kernels in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch

from mpembed.torch._feature_order import output_names
from mpembed.torch.torchrec._checks import (
    checked_plan,
    configs_of,
    refuse_to_move,
    refuse_variable_batch,
)
from mpembed.torch.torchrec._kernel import MpembedKernel
from mpembed.torch.torchrec._lookup import pooled_lookup, sequence_lookup
from mpembed.torch.torchrec._mean import Output, divisor
from mpembed.torch.torchrec._settings import FUSED_PARAM, SharderSettings
from mpembed.torch.torchrec._shards import Shard
from mpembed.torch.torchrec._state import ShardedState
from mpembed.torch.torchrec._versions import (
    ParameterSharding,
    PoolingType,
    ShardingEnv,
    maybe_td_to_kjt,
    splits_rows,
)
from mpembed.torch.torchrec._versions import ShardedEmbeddingBagCollection as _PooledBase
from mpembed.torch.torchrec._versions import ShardedEmbeddingCollection as _SequenceBase


class _Kernels(ShardedState):
    """What both sharded collections have of mpembed's kernels."""

    _lookups: list[Any]
    unheard: set[str]  # of the sharder: tables with settings that no collection has had

    def __init__(
        self,
        module: Any,
        plan: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        settings: SharderSettings,
        device: torch.device | None = None,
        module_fqn: str | None = None,
        **options: Any,
    ) -> None:
        names = tuple(one.name for one in configs_of(module))
        super().__init__(  # type: ignore[call-arg]
            module,
            checked_plan(module, plan, env),
            env,
            fused_params={FUSED_PARAM: settings.of_module(names, module_fqn or "")},
            device=device,
            module_fqn=module_fqn,
            **options,
        )
        self.table_names, self.unheard = names, set()

    def _checked(self, features: Any) -> Any:
        """Return features, a TensorDict's too, as a KeyedJaggedTensor.

        Warns once of settings for tables that no collection of the sharder has.
        """
        found = maybe_td_to_kjt(features)
        refuse_variable_batch(found)
        if self.unheard:
            warnings.warn(
                f"the sharder's tables= names {sorted(self.unheard)}, which are tables of none of "
                f"its collections; this one has {list(self.table_names)}",
                stacklevel=4,
            )
            self.unheard.clear()
        return found

    def kernels(self) -> list[MpembedKernel]:
        """Return the kernels on this rank."""
        return [
            one
            for lookup in self._lookups
            for one in lookup.modules()
            if isinstance(one, MpembedKernel)
        ]

    def shards(self) -> Iterator[Shard]:
        """Yield the shards on this rank."""
        for kernel in self.kernels():
            yield from kernel.shards

    def reset_parameters(self) -> None:
        """Do nothing: a collection draws its rows when it is made."""

    def update_shards(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: RuntimeError."""
        refuse_to_move()


class ShardedMpembedEmbeddingBagCollection(_Kernels, _PooledBase):  # type: ignore[misc]
    """A ``torchrec.EmbeddingBagCollection`` on all ranks; `MpembedSharder` makes it.

    Its ``state_dict`` has the tables as they are stored, in no ``weight``: packed rows, states and
    the cache's FP32 rows, for ``torch.distributed.checkpoint`` (``docs/distributed_state.md``).

    Parameters
    ----------
    module : torchrec.EmbeddingBagCollection
        Its configurations are read, its weights are not.
    plan : dict of table name -> ParameterSharding
        Which rank has what.
    env : ShardingEnv
        The ranks.
    settings : SharderSettings
        How tables are stored and trained.
    device : torch.device, optional
        Where; None is the CPU.
    module_fqn : str, optional
        The path in the model.
    **options
        `qcomm_codecs_registry` and `sharded_module_order_overwrite`, as in TorchRec.
    """

    _tables_prefix = "embedding_bags."

    def __init__(
        self,
        module: Any,
        plan: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        settings: SharderSettings,
        device: torch.device | None = None,
        module_fqn: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, plan, env, settings, device, module_fqn, **options)
        configs = configs_of(module)
        divided = {
            one.name
            for one in configs
            if one.pooling == PoolingType.MEAN and splits_rows(plan[one.name].sharding_type)
        }
        # TorchRec's own divisor is wrong where a table is not split by rows: see _mean.
        self._has_mean_pooling_callback = bool(divided)
        features = _features_of_outputs(configs)
        self._mean_outputs = [
            Output(features[name][0], columns, features[name][1] in divided)
            for name, columns in zip(self._embedding_names, self._embedding_dims, strict=True)
        ]

    def _create_lookups(self) -> None:
        for sharding, kind in zip(self._embedding_shardings, self._sharding_types, strict=True):
            self._lookups.append(pooled_lookup(sharding, kind))

    def input_dist(self, ctx: Any, features: Any) -> Any:
        """Send features to the ranks that have their rows."""
        features = self._checked(features)
        found = super().input_dist(ctx, features)
        if self._has_mean_pooling_callback:
            with torch.no_grad():
                ctx.divisor = divisor(features, self._mean_outputs)
        return found


class ShardedMpembedEmbeddingCollection(_Kernels, _SequenceBase):  # type: ignore[misc]
    """A ``torchrec.EmbeddingCollection`` on all ranks; `MpembedSequenceSharder` makes it.

    Parameters
    ----------
    module, plan, env, settings, device, module_fqn
        As in `ShardedMpembedEmbeddingBagCollection`.
    **options
        `qcomm_codecs_registry` and `use_index_dedup`, as in TorchRec.
    """

    _tables_prefix = "embeddings."

    def _create_lookups(self) -> None:
        for kind, sharding in self._sharding_type_to_sharding.items():
            self._lookups.append(sequence_lookup(sharding, kind))

    def input_dist(self, ctx: Any, features: Any) -> Any:
        """Send features to the ranks that have their rows."""
        return super().input_dist(ctx, self._checked(features))


def _features_of_outputs(configs: list[Any]) -> dict[str, tuple[str, str]]:
    """Return the feature and table of each output, by TorchRec's rule of their names."""
    names = output_names(configs, [one.feature_names for one in configs])
    pairs = [(name, one.name) for one in configs for name in one.feature_names]
    return dict(zip(names, pairs, strict=True))
