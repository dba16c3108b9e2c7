"""Counting every byte of a collection."""

from typing import Any

from mpembed import registry
from mpembed._collection.storage import Storage


def memory_report(storage: Storage, workspace: int) -> dict[str, Any]:
    """Return the bytes of a collection's arrays; see ``EmbeddingBagCollection.memory_report``."""
    tables: dict[str, dict[str, int]] = {}
    fp32_rows = 0
    for config, rows, state in zip(storage.configs, storage.rows, storage.states, strict=True):
        codes = config.num_embeddings * registry.code_bytes(config.precision, config.embedding_dim)
        tables[config.name] = {
            "codes": codes,
            "row_parameters": rows.nbytes - codes,
            "optimizer_state": 0 if state is None else state.nbytes,
        }
        fp32_rows += 4 * config.num_embeddings * config.embedding_dim
    caches: dict[str, dict[str, int]] = {}
    for group in storage.groups:
        if group.cache is not None:
            caches[f"dim{group.dim}"] = {
                "cache_rows": group.cache.rows.nbytes,
                "tags": group.cache.tags.nbytes,
                "policy_state": group.cache.meta.nbytes + group.cache.counters.nbytes,
                "sketch": 0 if group.cache.sketch is None else group.cache.sketch.nbytes,
            }
    state_bytes = sum(table["optimizer_state"] for table in tables.values())
    held = sum(sum(part.values()) for part in (*tables.values(), *caches.values()))
    descriptors = sum(group.kernels.nbytes for group in storage.groups)
    descriptors += storage.steps.nbytes + storage.device_errors.nbytes
    total = held + workspace + storage.stats.nbytes + descriptors
    # What the same collection costs with FP32 rows, the same optimizer and no cache.
    fp32_state = sum(
        0
        if array is None
        else config.num_embeddings * 4 * (config.embedding_dim if array.ndim == 2 else 1)
        for config, array in zip(storage.configs, storage.states, strict=True)
    )
    fp32_total = fp32_rows + fp32_state
    return {
        "tables": tables,
        "caches": caches,
        "statistics": storage.stats.nbytes,
        "descriptors": descriptors,
        "workspace": workspace,
        "total": total,
        "pinned_host": sum(
            table["codes"] + table["row_parameters"] + table["optimizer_state"]
            for config, table in zip(storage.configs, tables.values(), strict=True)
            if config.placement == "host"
        ),
        "fp32_total": fp32_total,
        "ratio": fp32_total / total,
        "ratio_embeddings": fp32_rows / (total - state_bytes),
    }
