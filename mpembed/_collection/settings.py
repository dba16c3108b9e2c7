"""What a collection is made with, checked."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpembed import devices, registry
from mpembed._arguments.scalars import integer
from mpembed._bindings.contract import MAX_SEED, MAX_TABLES
from mpembed._bindings.device import Device
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer


@dataclass(frozen=True)
class Settings:
    """The arguments of `EmbeddingBagCollection`."""

    tables: tuple[TableConfig, ...]
    cache: CacheConfig | None
    optimizer: Optimizer
    device: Device
    seed: int
    rounding: str
    bounds: str
    on_nonfinite: str

    @classmethod
    def checked(
        cls,
        tables: Sequence[TableConfig],
        cache: CacheConfig | None,
        optimizer: Optimizer,
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
        if cache is not None and not isinstance(cache, CacheConfig):
            raise TypeError(f"cache must be a CacheConfig or None, got {cache!r}")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an mpembed optimizer, got {optimizer!r}")
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
        return cls(given, cache, optimizer, found, seed, rounding, bounds, on_nonfinite)
