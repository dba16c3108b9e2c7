"""TorchRec's planner with the sizes of mpembed's tables.

A planner of your own takes them by its enumerator: ``MpembedEnumerator(topology, batch_size,
constraints)``. It needs TorchRec 1.7.0 or newer.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import distributed, nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.distributed.utils import get_device_type

from mpembed.torch.torchrec._estimators import (
    Constraints,
    MpembedPerfEstimator,
    MpembedStorageEstimator,
)
from mpembed.torch.torchrec._planner_versions import (
    BATCH_SIZE,
    EmbeddingEnumerator,
    EmbeddingShardingPlanner,
    FixedPercentageStorageReservation,
    KernelConfig,
    PlannerError,
    PlannerErrorType,
    ShardEstimator,
    ShardingOption,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from mpembed.torch.torchrec._versions import CUSTOMIZED

__all__ = [
    "MpembedEnumerator",
    "MpembedPerfEstimator",
    "MpembedShardingPlanner",
    "MpembedStorageEstimator",
]
_RESERVED = 0.15  # of a GPU's memory, the share that TorchRec's planner reserves
_SPLIT_COLUMNS = (
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)


class MpembedEnumerator(EmbeddingEnumerator):  # type: ignore[misc]
    """``EmbeddingEnumerator`` with mpembed's estimators.

    It leaves out plans that split mpembed's tables by columns, unless the constraints of a table
    name such a type: rowwise optimizers then keep a state a shard, so that training differs, and
    packed shards of columns cannot be loaded by another plan.

    Parameters
    ----------
    topology : Topology
        The devices and their memory.
    batch_size : int
        Samples of a rank's batch.
    constraints : mapping of table name -> ParameterConstraints, optional
        As in TorchRec's planner.
    estimator : ShardEstimator or list of them, optional
        By default `MpembedPerfEstimator` and `MpembedStorageEstimator`.
    """

    def __init__(
        self,
        topology: Topology,
        batch_size: int = BATCH_SIZE,
        constraints: Constraints | None = None,
        estimator: ShardEstimator | list[ShardEstimator] | None = None,
    ) -> None:
        given = None if constraints is None else dict(constraints)
        if estimator is None:
            estimator = [
                MpembedPerfEstimator(topology, given),
                MpembedStorageEstimator(topology, given),
            ]
        super().__init__(topology, batch_size, given, estimator)
        self._asked = {name: tuple(one.sharding_types or ()) for name, one in (given or {}).items()}

    def enumerate(self, module: nn.Module, sharders: list[Any]) -> list[ShardingOption]:
        """Return the options of a plan with their estimates, as TorchRec's planner asks."""
        return [one for one in super().enumerate(module, sharders) if self._allowed(one)]

    def _allowed(self, option: ShardingOption) -> bool:
        kind = option.sharding_type
        ours = option.compute_kernel == CUSTOMIZED
        return not ours or kind not in _SPLIT_COLUMNS or kind in self._asked.get(option.name, ())


class MpembedShardingPlanner(EmbeddingShardingPlanner):  # type: ignore[misc]
    """``EmbeddingShardingPlanner`` that knows what mpembed's tables take.

    Parameters
    ----------
    topology : Topology, optional
        The devices and their memory. By default the ranks of ``torch.distributed`` with TorchRec's
        constants; on the CPU these are 128 GiB a rank, so pass a topology with what there is.
    batch_size : int, optional
        Samples of a rank's batch.
    constraints : mapping of table name -> ParameterConstraints, optional
        What the plan has to keep to; ``pooling_factors`` says how long bags are.
    **options
        As in ``EmbeddingShardingPlanner``. `enumerator` is by default an `MpembedEnumerator`.
        `storage_reservation` is by default 15 % of a GPU's memory, and nothing on the CPU.
    """

    def __init__(
        self,
        topology: Topology | None = None,
        batch_size: int | None = None,
        constraints: Constraints | None = None,
        **options: Any,
    ) -> None:
        topology = _topology() if topology is None else topology
        batch_size = BATCH_SIZE if batch_size is None else batch_size
        given = None if constraints is None else dict(constraints)
        if options.get("enumerator") is None:
            options["enumerator"] = MpembedEnumerator(topology, batch_size, given)
        if options.get("storage_reservation") is None:
            options["storage_reservation"] = FixedPercentageStorageReservation(_RESERVED)
        super().__init__(topology, batch_size, constraints=given, **options)

    def collective_plan(
        self,
        module: nn.Module,
        sharders: list[Any] | None = None,
        pg: distributed.ProcessGroup | None = None,
    ) -> ShardingPlan:
        """Plan on the first rank and send the plan to all; what goes wrong is raised on all.

        TorchRec's planner raises on the first rank alone, and the others wait for it until the
        process group's timeout.

        Raises
        ------
        PlannerError
            If no plan fits.
        RuntimeError
            On the other ranks, if the first one raised something else; it says what.
        """
        group = distributed.group.WORLD if pg is None else pg
        if group is None:
            raise RuntimeError(
                "collective_plan needs torch.distributed.init_process_group(); in one process, "
                "use plan(module, sharders)"
            )
        sharders = get_default_sharders() if sharders is None else sharders
        failure: Exception | None = None
        outcome: list[Any] = [None]
        if group.rank() == 0:
            try:
                outcome = [self.plan(module, sharders)]
            except Exception as error:
                failure, outcome = error, [_Failed(error)]
        distributed.broadcast_object_list(outcome, group=group, group_src=0)
        if failure is not None:
            raise failure
        if isinstance(outcome[0], _Failed):
            outcome[0].raise_it()
        plan: ShardingPlan = outcome[0]
        return plan


class _Failed:
    """What the first rank raised, in a form that can always be sent."""

    def __init__(self, error: Exception) -> None:
        self._text = str(error)
        self._kind = type(error).__name__
        self._planner: PlannerErrorType | None = None
        if isinstance(error, PlannerError):
            self._planner = error.error_type

    def raise_it(self) -> NoReturn:
        """Raise it on another rank."""
        if self._planner is not None:
            raise PlannerError(self._text, self._planner)
        raise RuntimeError(f"planning failed on the first rank: {self._kind}: {self._text}")


def _topology() -> Topology:
    """Return the ranks of ``torch.distributed`` with TorchRec's constants."""
    if not distributed.is_initialized():
        raise ValueError("topology is needed without torch.distributed.init_process_group()")
    world = distributed.get_world_size()
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world, local_world_size=get_local_size(world)),
        kernel_config=KernelConfig(compute_device=get_device_type()),
    )
