"""What a report says of settings that are others than those of the checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mpembed._collection.settings import Settings
from mpembed.config import CacheConfig
from mpembed.optim import Optimizer


def changed_settings(old: Settings, new: Settings) -> list[str]:
    """Return the settings that were changed, apart from those of which rows and states tell."""
    found = _of_optimizers(old, new)
    if old.cache != new.cache:
        found.append(f"cache: {_of_cache(old.cache, new.cache)}")
    for name in ("rounding", "bounds", "on_nonfinite"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            found.append(f"{name} from {before!r} to {now!r}")
    return found


def _of_optimizers(old: Settings, new: Settings) -> list[str]:
    """Return what has changed of the tables' optimizers; equal changes are one."""
    tables: dict[str, list[str]] = {}
    for table, before, now in zip(new.tables, old.optimizers, new.optimizers, strict=True):
        if before is None or now is None:
            continue  # frozen tables stay so
        text = _of_optimizer(before, now)
        if text:
            tables.setdefault(text, []).append(repr(table.name))
    return [f"optimizer of {', '.join(names)}: {text}" for text, names in tables.items()]


def _of_optimizer(old: Optimizer, new: Optimizer) -> str:
    if old.kind != new.kind:
        return f"from {old!r} to {new!r}"
    return _differences(old.settings(), new.settings(), {"state_precision"})


def _of_cache(old: CacheConfig | None, new: CacheConfig | None) -> str:
    if old is None or new is None:
        return f"from {old!r} to {new!r}"
    return _differences(dataclasses.asdict(old), dataclasses.asdict(new), set())


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], apart_from: set[str]) -> str:
    names = [name for name in new if name not in apart_from and old[name] != new[name]]
    return ", ".join(f"{name} from {old[name]!r} to {new[name]!r}" for name in names)
