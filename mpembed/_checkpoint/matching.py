"""Whether a delta is of a collection with these settings; and the rates that it has."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mpembed._bindings.device import Stream
from mpembed._checkpoint.checks import check_groups
from mpembed._checkpoint.manifest import manifest_of, unique_optimizers
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed.optim import Optimizer

#: What differs between a save and the one that continues it, or with the device.
_FREE = {"format", "version", "written_by", "since", "crc32", "step", "updates", "device", "groups"}
_FREE_OF_TABLES = {"placement", "lr_now"}
_FREE_OF_OPTIMIZERS = {"lr"}
_WAY_OUT = (
    "a delta fits a collection that was loaded from the save before it without changes. Load "
    "that with its deltas, save the result, and change what you load from there"
)


def refuse_other_settings(
    state: CollectionState, target: Path, manifest: dict[str, Any], on: Stream
) -> None:
    """Raise ValueError where a delta's manifest does not describe this collection."""
    own = _fixed(json.loads(json.dumps(manifest_of(state, on))))
    try:
        given = _fixed(manifest)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error!r}") from error
    for one, other in zip(own["tables"], given["tables"], strict=False):
        _refuse_other_table(target, one, other)
    if len(own["tables"]) != len(given["tables"]):
        raise ValueError(
            f"{target}: it has {len(given['tables'])} tables, and this collection has "
            f"{len(own['tables'])}: {_WAY_OUT}"
        )
    for key in sorted(own.keys() | given.keys()):
        if own.get(key) != given.get(key):
            raise ValueError(
                f"{target}: its {key} is {given.get(key)!r}, and this collection's is "
                f"{own.get(key)!r}: {_WAY_OUT}"
            )


def _refuse_other_table(target: Path, own: dict[str, Any], given: dict[str, Any]) -> None:
    for key in sorted(own.keys() | given.keys()):
        if own.get(key) != given.get(key):
            more = "rows are never removed or added by a delta, and " if "num" in key else ""
            raise ValueError(
                f"{target}: {key} of table {own['name']!r} is {given.get(key)!r}, and in this "
                f"collection {own.get(key)!r}: {more}{_WAY_OUT}"
            )


def as_saved(state: CollectionState, target: Path, manifest: dict[str, Any]) -> Settings:
    """Return the settings of this collection as it was where a delta was saved.

    They differ in the tables' places.
    """
    try:
        tables = tuple(
            dataclasses.replace(own, placement=fields["placement"])
            for own, fields in zip(state.settings.tables, manifest["tables"], strict=True)
        )
        saved = dataclasses.replace(state.settings, tables=tables)
        check_groups(manifest, saved)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from error
    return saved


def _fixed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says that stays the same from a save to the next."""
    fixed = {key: value for key, value in manifest.items() if key not in _FREE}
    fixed["tables"] = [
        {key: value for key, value in one.items() if key not in _FREE_OF_TABLES}
        for one in manifest["tables"]
    ]
    fixed["optimizers"] = [
        [kind, {key: value for key, value in settings.items() if key not in _FREE_OF_OPTIMIZERS}]
        for kind, settings in manifest["optimizers"]
    ]
    return fixed


def rate_owners(settings: Settings) -> list[Optimizer]:
    """Return the optimizers whose rates a manifest has, in the order of `checked_rates`."""
    own = [
        optimizer
        for table, optimizer in zip(settings.tables, settings.optimizers, strict=True)
        if table.lr is not None and optimizer is not None
    ]
    return [*unique_optimizers(settings), *own]


def checked_rates(state: CollectionState, target: Path, manifest: dict[str, Any]) -> list[float]:
    """Return the rates of a manifest that describes this collection."""
    owners = rate_owners(state.settings)
    try:
        found = [settings["lr"] for _, settings in manifest["optimizers"]]
        found += [one["lr_now"] for one in manifest["tables"] if one["lr_now"] is not None]
        return [one.with_lr(lr).lr for one, lr in zip(owners, found, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from error
