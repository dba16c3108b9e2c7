"""Makes the collections of a run and counts what a row of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.settings import Setting

import mpembed as mpe
from mpembed.optim import OPTIMIZERS, Optimizer

WAYS = 8  # small tables: a set of 32 slots would be a large share of them
_ROW_PARTS = ("codes", "row_parameters", "padding")
_CACHE_PARTS = ("cache_rows", "tags", "policy_state", "sketch")


def make_optimizer(setting: Setting, default: str, rates: Mapping[str, float]) -> Optimizer:
    """Make a setting's optimizer, at the model's rate for it."""
    kind = setting.optimizer or default
    return OPTIMIZERS[kind](lr=rates[kind] * setting.rate)


def make_tables(
    rows: Mapping[str, int],
    setting: Setting,
    optimizer: Optimizer,
    dim: int,
    std: float,
    seed: int,
) -> mpe.EmbeddingBagCollection:
    """Make tables that are looked up without pooling and start at N(0, std^2)."""
    tables = [
        mpe.TableConfig(
            name,
            count,
            setting.dim or dim,
            precision=setting.precision,
            pooling="none",
            init=("normal", std),
        )
        for name, count in rows.items()
    ]
    cache = None
    if setting.load:
        cache = mpe.CacheConfig(load_factor=setting.load, policy=setting.policy, ways=WAYS)
    return mpe.EmbeddingBagCollection(
        tables, optimizer=optimizer, cache=cache, seed=seed, rounding=setting.rounding
    )


def row_bytes(report: dict[str, Any], rows: int) -> dict[str, float]:
    """Return the bytes of a row: its own, those of the cache, and those of its optimizer state.

    Parameters
    ----------
    report : dict
        Of ``memory_report()``. What does not grow with the rows (workspace, descriptors,
        statistics) is left out: in tables as small as the study's it would hide everything else.
    rows : int
        Of all tables.
    """
    tables, caches = report["tables"].values(), report["caches"].values()
    own = sum(part[name] for part in tables for name in _ROW_PARTS if name in part)
    cache = sum(part[name] for part in caches for name in _CACHE_PARTS if name in part)
    states = sum(part["optimizer_state"] for part in (*tables, *caches))
    return {"row": own / rows, "cache": cache / rows, "state": states / rows}
