"""Checks of a manifest: all of it, in time linear in its length, before it is acted upon."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from mpembed._bindings.contract import MAX_TABLES
from mpembed._collection import grouping
from mpembed._collection.settings import Settings
from mpembed._collection.state import COUNTERS
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import OWN, Optimizer, made

_FIELDS = {"format", "version", "written_by", "tables", "groups", "cache", "optimizers"}
_FIELDS |= {"optimizer", "device", "seed", "rounding", "bounds", "on_nonfinite", "crc32"}
_FIELDS |= set(COUNTERS)
_TABLE_FIELDS = {one.name for one in dataclasses.fields(TableConfig)} | {"lr_now"}
_CACHE_FIELDS = {one.name for one in dataclasses.fields(CacheConfig)}
_DEVICE = re.compile(r"cpu|cuda:(0|[1-9][0-9]{0,8})")
_MAX_CRC = 2**32 - 1


def check_manifest(manifest: dict[str, Any], arrays: Collection[str]) -> None:
    """Raise TypeError or ValueError unless a manifest has just the fields that it should.

    What the classes of the settings check themselves is left to them.
    """
    _check_fields("it", manifest, _FIELDS)
    tables = _list("tables", manifest["tables"], 1, MAX_TABLES)
    for fields in tables:
        _check_fields("a table", fields, _TABLE_FIELDS)
    names = [fields["name"] for fields in tables]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("its tables' names are not texts, each once")
    given = _list("optimizers", manifest["optimizers"], 0, len(tables) + 1)
    for place in (manifest["optimizer"], *(fields["optimizer"] for fields in tables)):
        if place is not None and not (type(place) is int and 0 <= place < len(given)):
            raise ValueError(f"an optimizer's place is {place!r}, of {len(given)}")
    if manifest["cache"] is not None:
        _check_fields("cache", manifest["cache"], _CACHE_FIELDS)
    _check_device(manifest["device"], tables)
    if not isinstance(manifest["written_by"], str):
        raise TypeError("written_by is not a text")
    _check_sums(manifest["crc32"], arrays)


def optimizers_of(manifest: Mapping[str, Any]) -> list[Optimizer]:
    """Return the optimizers; ValueError where a setting is missing, or not one of theirs."""
    found = []
    for one in manifest["optimizers"]:
        kind, settings = one if isinstance(one, list) and len(one) == 2 else (None, None)
        if not isinstance(kind, str) or not isinstance(settings, dict):
            raise ValueError("an optimizer is not a name with settings")
        optimizer = made(kind, settings)
        _check_fields(f"optimizer {kind!r}", settings, set(optimizer.settings()))
        if optimizer.kind != kind:
            raise ValueError(f"an optimizer has the settings of {optimizer.kind!r}, not {kind!r}")
        found.append(optimizer)
    return found


def other_source(manifest: Mapping[str, Any]) -> str:
    """Return what an error may come from where an optimizer of the user's own saved the file."""
    given = manifest.get("optimizers")
    for one in given if isinstance(given, list) else ():
        kind = one[0] if isinstance(one, list) and one else None
        if isinstance(kind, str) and kind in OWN:
            return (
                f"; or the struct of optimizer {kind!r} had other states or parameters when this "
                "was saved: make it from the source of then, in a new process"
            )
    return ""


def check_groups(manifest: Mapping[str, Any], saved: Settings) -> None:
    """Raise ValueError unless the groups are those that such tables are in."""
    expected = [
        {"label": group.label, "tables": list(group.tables), "cached": group.cached}
        for group in grouping.plan(saved)
    ]
    # As texts: True is not 1.
    if json.dumps(manifest["groups"], sort_keys=True) != json.dumps(expected, sort_keys=True):
        raise ValueError("its groups are not those of its tables")


def _check_fields(what: str, found: Any, expected: set[str]) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"{what} is not an object")
    if set(found) != expected:
        missing, unknown = expected - set(found), set(found) - expected
        name = min(missing) if missing else min(unknown)
        raise ValueError(f"{what} has {'no' if missing else 'an unknown'} {name!r}")


def _list(what: str, found: Any, least: int, most: int) -> list[Any]:
    if not isinstance(found, list) or not least <= len(found) <= most:
        raise ValueError(f"{what} is not a list of {least} to {most}")
    return found


def _check_device(device: Any, tables: list[dict[str, Any]]) -> None:
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise ValueError(f"device is {device!r}, not 'cpu' or 'cuda:N'")
    for fields in tables:
        if fields["placement"] not in ("device", *(["host"] if device != "cpu" else [])):
            raise ValueError(f"placement is {fields['placement']!r} of a table on {device!r}")


def _check_sums(sums: Any, arrays: Collection[str]) -> None:
    if not isinstance(sums, dict) or set(sums) != set(arrays):
        raise ValueError("crc32 does not have each array's checksum")
    if not all(type(one) is int and 0 <= one <= _MAX_CRC for one in sums.values()):
        raise ValueError("crc32 has what is no checksum")
