"""The bytes of a collection before it is made, by the arithmetic that makes it."""

import math
from typing import Any

from mpembed import registry
from mpembed._collection import grouping
from mpembed._collection.memory_report import cache_parts, table_parts
from mpembed._collection.records import record_bytes
from mpembed._collection.settings import Settings
from mpembed._collection.storage import cache_shapes, table_fields

_STATISTIC = 8  # bytes


def memory_plan(settings: Settings, *, aligned: bool | None = None) -> dict[str, Any]:
    """Return what ``memory_report()`` of a collection with these settings will count.

    Parameters
    ----------
    settings : Settings
        Of the collection.
    aligned : bool, optional
        Whether rows are aligned as on a device; by default as on the settings' device.

    Returns
    -------
    dict
        ``tables``, ``caches``, ``statistics`` and ``total`` as in ``memory_report()``, without the
        workspace of batches and without descriptors, some hundred bytes a table on a device.
    """
    if aligned is None:
        aligned = not settings.device.synchronous
    tables = {}
    for config, optimizer in zip(settings.tables, settings.optimizers, strict=True):
        fields = table_fields(config, optimizer)
        nbytes = config.num_embeddings * record_bytes(fields, aligned=aligned)
        tables[config.name] = table_parts(config, fields, nbytes)
    caches = {}
    for group in grouping.plan(settings):
        if group.cached and settings.cache is not None:
            rows = sum(settings.tables[i].num_embeddings for i in group.tables)
            shapes = cache_shapes(settings.cache, rows, group)
            sizes = {
                name: math.prod(shape) * kind.itemsize for name, (kind, shape) in shapes.items()
            }
            caches[group.label] = cache_parts(sizes, group)
    entries = len(registry.STATS) + len(registry.NOISE_SUMS)
    statistics = len(settings.tables) * entries * _STATISTIC
    parts = [*tables.values(), *caches.values()]
    total = statistics + sum(sum(part.values()) for part in parts)
    return {"tables": tables, "caches": caches, "statistics": statistics, "total": total}
