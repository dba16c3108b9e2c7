"""What a shard takes and reads, from the settings of a sharder; the planner's estimators ask."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from mpembed import registry
from mpembed._collection.memory_plan import memory_plan
from mpembed._collection.settings import Settings
from mpembed.config import CacheConfig, TableConfig
from mpembed.torch.torchrec._settings import FrozenTable, SharderSettings


@dataclass(frozen=True)
class ShardBytes:
    """The bytes of a shard on its rank.

    Attributes
    ----------
    table : int
        Packed rows, optimizer states, padding and statistics.
    cache : int
        Its part of the rank's cache: FP32 rows and states, tags, the policy's state.
    """

    table: int
    cache: int


def table_settings(settings: SharderSettings, name: str) -> FrozenTable:
    """Return the settings of a table by its name; ValueError if it has no optimizer."""
    return settings.of_module([name], "").tables[0]


@lru_cache(maxsize=1024)  # equal shards are many
def shard_bytes(
    own: FrozenTable,
    cache: CacheConfig | None,
    rows: int,
    columns: int,
    *,
    share: float = 1.0,
    aligned: bool = False,
) -> ShardBytes:
    """Return what a shard takes, by the arithmetic of ``memory_report()``.

    Parameters
    ----------
    own : FrozenTable
        The table's settings.
    cache : CacheConfig or None
        The sharder's.
    rows, columns : int
        Of the shard.
    share : float
        The part of a cache of a fixed number of sets that is counted here, in (0, 1].
    aligned : bool
        Whether the rows lie on a device, which aligns them.

    Raises
    ------
    ValueError
        For a cache of too many slots.
    """
    if cache is not None and cache.num_sets is not None:
        cache = replace(cache, num_sets=max(1, math.ceil(share * cache.num_sets)))
    optimizer = None if own.optimizer is None else own.optimizer.make()
    table = TableConfig(
        "shard",
        rows,
        columns,
        own.precision,
        optimizer=optimizer,
        trainable=own.trainable,
    )
    checked = Settings.checked(
        [table],
        cache if rows else None,
        None,
        "cpu",
        0,
        registry.DEFAULT_ROUNDING,
        "raise",
        "raise",
    )
    plan = memory_plan(checked, aligned=aligned)
    cached = sum(sum(parts.values()) for parts in plan["caches"].values())
    return ShardBytes(plan["total"] - cached, cached)


def read_bytes(own: FrozenTable, cache: CacheConfig | None, columns: int) -> int:
    """Return the bytes that a forward reads of a row: with a cache, those of the FP32 row."""
    cached = cache is not None and own.trainable
    return registry.row_bytes("fp32" if cached else own.precision, columns)
