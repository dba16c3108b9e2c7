"""Checkpoints of earlier layouts, read as those of today's."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpembed._collection import grouping
from mpembed._collection.settings import Settings
from mpembed._collection.storage import logical_arrays
from mpembed.config import TableConfig
from mpembed.optim import OPTIMIZERS

Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

#: The first layout that can be read; the last is the one that files are written in.
OLDEST = 1
_SINCE_2 = ("groups", "optimizers", "updates")
_TABLE_SINCE_2 = ("optimizer", "lr", "lr_now", "trainable", "table_id", "first_row", "total_rows")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes
    ----------
    version : int
        Of its layout.
    settings : Settings
        Those it was saved with, its tables where they are loaded.
    there : Settings
        Those it was saved with.
    arrays : dict of name -> (dtype, shape)
        What is read of the file, by its names there.
    in_file : dict of name -> (dtype, shape)
        What the file has: on the CPU, tables in the host's memory beside a device have no cache of
        their own.
    names : dict of name -> name
        Today's name of an array -> the file's; those that the file lacks are left out.
    slot_states : bool
        Whether slots of the cache hold the states of their rows. Otherwise the tables have them.
    current : bool
        Whether the file has today's arrays.
    """

    version: int
    settings: Settings
    there: Settings
    arrays: Layout
    in_file: Layout
    names: dict[str, str]
    slot_states: bool
    current: bool


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest of any layout with the entries of today's; it keeps its version.

    Raises
    ------
    ValueError
        If it has entries that its layout did not have.
    """
    found = dict(manifest)
    if found["version"] == 1:  # one optimizer, for all tables; its updates were not counted
        _refuse_later("it", found, _SINCE_2)
        added = {one.name: one.default for one in dataclasses.fields(TableConfig)}
        added = {name: added.get(name) for name in _TABLE_SINCE_2}
        if isinstance(found.get("tables"), list):
            found["tables"] = [_completed_table(table, added) for table in found["tables"]]
        found |= {"optimizers": [_completed(found.get("optimizer"))], "optimizer": 0, "updates": 0}
        found["groups"] = []
    return found


def _refuse_later(what: str, fields: Mapping[str, Any], later: Iterable[str]) -> None:
    for name in later:
        if name in fields:
            raise ValueError(f"{what} has an unknown {name!r}, which version 1 does not have")


def _completed_table(table: Any, added: dict[str, Any]) -> Any:
    """Return a table of the first layout with the entries that it has had since."""
    if not isinstance(table, dict):
        return table
    _refuse_later("a table", table, added)
    return {**added, **table}


def _completed(one: Any) -> Any:
    """Return an optimizer of the first layout with the settings that it has had since."""
    if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and one[0] in OPTIMIZERS:
        kind, settings = one
        if isinstance(settings, dict):
            made = OPTIMIZERS[kind](**settings)
            if len(made.states) > 1:  # their arrays would all be the table's state
                raise ValueError(
                    f"optimizer {kind!r} keeps {len(made.states)} states a row, but version 1 has "
                    "one"
                )
            return [kind, made.settings()]
    return one


def saved_arrays(version: int, settings: Settings, there: Settings) -> Saved:
    """Return what a file of a layout holds for these settings, saved with those `there`."""
    names, slot_states = _file_names(version, settings), version >= 2
    arrays = _file_arrays(version, settings, names)
    return Saved(
        version,
        settings,
        there,
        arrays,
        _file_arrays(version, there, _file_names(version, there)),
        names,
        slot_states,
        current=slot_states and arrays == logical_arrays(settings),
    )


def _file_names(version: int, settings: Settings) -> dict[str, str]:
    """Return today's name of each array that a file of a layout has, and its name there."""
    names = {name: name for name in logical_arrays(settings)}
    if version < 3:  # what rounding adds was not measured
        del names["noise"]
    return names if version > 1 else _names_in_1(names, settings)


def _file_arrays(version: int, settings: Settings, names: dict[str, str]) -> Layout:
    arrays = logical_arrays(settings)
    found = {file: arrays[name] for name, file in names.items()}
    if version < 2:  # a slot held a row and nothing else
        for group in grouping.plan(settings):
            if (rows := found.get(f"cache.{group.dim}.rows")) is not None:
                dtype, (sets, ways, _) = rows
                found[f"cache.{group.dim}.rows"] = dtype, (sets, ways, group.dim)
    return found


def _names_in_1(names: Iterable[str], settings: Settings) -> dict[str, str]:
    """Return what arrays were called: groups had but a dimension, and a row but one state."""
    groups = {f"cache.{group.label}": f"cache.{group.dim}" for group in grouping.plan(settings)}
    tables = {f"table.{table.name}" for table in settings.tables}
    found = {}
    for name in names:
        owner, _, own = name.rpartition(".")
        if owner in groups:
            if own != "values":
                found[name] = f"{groups[owner]}.{own}"
        else:
            found[name] = f"{owner}.state" if owner in tables and own != "rows" else name
    return found
