"""What a collection is made with, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mpembed import devices, registry
from mpembed._arguments.scalars import integer
from mpembed._bindings.contract import MAX_SEED, MAX_TABLES
from mpembed._bindings.device import Device
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer


@dataclass(frozen=True)
class Settings:
    """The arguments of `EmbeddingBagCollection`, and the optimizer of each table."""

    tables: tuple[TableConfig, ...]
    cache: CacheConfig | None
    optimizer: Optimizer | None
    device: Device
    seed: int
    rounding: str
    bounds: str
    on_nonfinite: str
    optimizers: tuple[Optimizer | None, ...]

    @classmethod
    def checked(
        cls,
        tables: Sequence[TableConfig],
        cache: CacheConfig | None,
        optimizer: Optimizer | None,
        device: str | devices.CudaDevice | devices.TorchDevice,
        seed: int,
        rounding: str,
        bounds: str,
        on_nonfinite: str,
    ) -> "Settings":
        """Return the settings, or raise TypeError, ValueError or RuntimeError."""
        given = tuple(tables) if isinstance(tables, Sequence) else ()
        if not given or not all(isinstance(t, TableConfig) for t in given):
            raise TypeError("tables must be a non-empty sequence of TableConfig")
        if len(given) > MAX_TABLES:
            raise ValueError(f"at most {MAX_TABLES} tables, got {len(given)}")
        names = [table.name for table in given]
        if len(set(names)) != len(names):
            raise ValueError(f"table names must be unique, got {names}")
        refuse_shared_rows(given)
        if cache is not None and not isinstance(cache, CacheConfig):
            raise TypeError(f"cache must be a CacheConfig or None, got {cache!r}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an mpembed optimizer or None, got {optimizer!r}")
        optimizers = tuple(_optimizer(table, optimizer) for table in given)
        registry.choose("rounding", rounding, registry.ROUNDINGS)
        registry.choose("bounds", bounds, {"raise": 0, "drop": 1})
        registry.choose("on_nonfinite", on_nonfinite, {"raise": 0, "skip": 1})
        seed = integer("seed", seed, 0, MAX_SEED)
        found = devices.get(device)
        away = [table.name for table in given if table.placement == "host"]
        if found.synchronous and away:
            raise ValueError(
                f"placement='host' of table {away[0]!r} needs a device: on the CPU every table is "
                "in the host's memory"
            )
        rest = seed, rounding, bounds, on_nonfinite
        return cls(given, cache, optimizer, found, *rest, optimizers)

    def table_id(self, table: int) -> int:
        """Return the number of a table in random keys."""
        given = self.tables[table].table_id
        return table if given is None else given


def _optimizer(table: TableConfig, shared: Optimizer | None) -> Optimizer | None:
    """Return what trains a table; None if it is frozen."""
    if not table.trainable:
        return None
    base = shared if table.optimizer is None else table.optimizer
    if base is None:
        raise ValueError(
            f"table {table.name!r} has no optimizer: give the collection one, or the table "
            "(TableConfig(optimizer=...)), or freeze it (trainable=False)"
        )
    if table.lr is None:
        return base
    try:
        return base.with_lr(table.lr)
    except ValueError as error:
        raise ValueError(f"{error} (the rate of table {table.name!r})") from None


def refuse_shared_rows(tables: Sequence[TableConfig]) -> None:
    """Raise ValueError where two tables are the same rows of the same table."""
    spans = sorted(
        (i if table.table_id is None else table.table_id, table.first_row, i)
        for i, table in enumerate(tables)
        if table.num_embeddings > 0
    )
    for (one_id, one_row, one), (other_id, other_row, other) in pairwise(spans):
        if one_id == other_id and other_row < one_row + tables[one].num_embeddings:
            raise ValueError(
                f"tables {tables[one].name!r} and {tables[other].name!r} have the same table_id, "
                f"{one_id}, and share rows from {other_row} on: give them different table_id, or "
                "a first_row that keeps them apart"
            )
