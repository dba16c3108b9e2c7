"""Counting every byte of a collection."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpembed import registry
from mpembed._collection.grouping import GroupPlan
from mpembed._collection.records import Field
from mpembed._collection.storage import GroupStorage, Storage
from mpembed.config import TableConfig


def memory_report(storage: Storage, workspace: int) -> dict[str, Any]:
    """Return the bytes of a collection's arrays; see ``EmbeddingBagCollection.memory_report``."""
    storage.drop_read_snapshot()
    pairs = list(zip(storage.configs, storage.tables, strict=True))
    tables = {
        config.name: table_parts(config, records.fields, records.nbytes)
        for config, records in pairs
    }
    caches = {
        group.plan.label: _cache(group) for group in storage.groups if group.cache is not None
    }
    fp32_rows = sum(4 * config.num_embeddings * config.embedding_dim for config in storage.configs)
    # What the same collection costs with FP32 rows, the same optimizers and no cache.
    fp32_total = fp32_rows + sum(
        4 * records.count * math.prod(field.shape)
        for records in storage.tables
        for field in records.fields[1:]
    )
    parts = [*tables.values(), *caches.values()]
    descriptors = sum(group.kernels.nbytes for group in storage.groups)
    descriptors += storage.steps.nbytes + storage.rules.nbytes + storage.device_errors.nbytes
    total = sum(sum(part.values()) for part in parts)
    statistics = storage.stats.nbytes + storage.noise.nbytes
    tracking = storage.changes.nbytes + storage.saves.nbytes
    snapshot = 0 if storage.snapshot is None else storage.snapshot.nbytes
    total += workspace + statistics + descriptors + tracking + snapshot
    states = sum(part["optimizer_state"] for part in parts)
    return {
        "tables": tables,
        "caches": caches,
        "statistics": statistics,
        "descriptors": descriptors,
        "change_tracking": tracking,
        "background_save": snapshot,
        "workspace": workspace,
        "total": total,
        "pinned_host": sum(
            records.nbytes for config, records in pairs if config.placement == "host"
        ),
        "fp32_total": fp32_total,
        "ratio": fp32_total / total,
        "ratio_embeddings": fp32_rows / (total - states),
    }


def table_parts(config: TableConfig, fields: Sequence[Field], nbytes: int) -> dict[str, int]:
    """Return the bytes of a table's parts; its fields and all its bytes are given."""
    row, *states = (config.num_embeddings * field.nbytes for field in fields)
    codes = config.num_embeddings * registry.code_bytes(config.precision, config.embedding_dim)
    return {
        "codes": codes,
        "row_parameters": row - codes,
        "optimizer_state": sum(states),
        "padding": nbytes - row - sum(states),
    }


def cache_parts(sizes: Mapping[str, int], group: GroupPlan) -> dict[str, int]:
    """Return the bytes of a cache's parts; those of its arrays are given by name."""
    rows = sizes["rows"] // group.slot_floats * group.dim
    return {
        "cache_rows": rows,
        "optimizer_state": sizes["rows"] - rows + sizes.get("values", 0),
        "tags": sizes["tags"],
        "policy_state": sizes["meta"] + sizes["counters"],
        "sketch": sizes.get("sketch", 0),
    }


def _cache(group: GroupStorage) -> dict[str, int]:
    arrays = {} if group.cache is None else group.cache.arrays()
    sizes = {name: int(array.nbytes) for name, array in arrays.items()}
    return cache_parts(sizes, group.plan)
