"""How ``torch.distributed.checkpoint`` reads sharded tables that were split in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mpembed.torch._sharded_entries import local_part
from mpembed.torch._sharded_names import (
    ABOUT,
    CACHED_ROWS,
    ROWS,
    SKETCH,
    STATE,
    ShardKey,
    whole_table,
)

Kinds = dict[str, TensorStorageMetadata]


class LoadPlanner(DefaultLoadPlanner):
    """Reads what a ``state_dict`` has; of sharded tables, also shards that were split otherwise.

    ``torch.distributed.checkpoint.load(state, planner=LoadPlanner())`` then takes the number of
    cached rows, and how the rows were split, from the checkpoint. Everything else is loaded as by
    the default planner.

    Parameters
    ----------
    allow_partial_load : bool
        Whether tables and entries that the checkpoint does not have are left as they are.

    Raises
    ------
    ValueError
        In `load`, before anything is read: if a table has other rows, another precision, dimension
        or other states in the checkpoint, or other columns.
    """

    def __init__(self, *, allow_partial_load: bool = False) -> None:
        super().__init__(allow_partial_load=allow_partial_load)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Replace the entries of own shards by those of the saved shards that are needed."""
        super().set_up_planner(state_dict, metadata, is_coordinator)
        assert metadata is not None
        saved = _Saved(metadata)
        own: dict[tuple[str, int, int], list[ShardKey]] = {}
        for key in map(ShardKey.parsed, self.state_dict):
            if key is not None:
                own.setdefault(key[:3], []).append(key)
        for keys in own.values():
            for key in keys:
                if key.kind == ABOUT:
                    self._replace(key, keys, saved)

    def _replace(self, own: ShardKey, keys: list[ShardKey], saved: _Saved) -> None:
        path = self.mappings[str(own)]
        if own.table in saved.shards:
            self._check(own, saved)
        elif not self.allow_partial_load or saved.other_columns(own.table):
            raise ValueError(saved.missing(own.table))
        for key in keys:
            del self.state_dict[str(key)], self.mappings[str(key)]
            del _parent(self.original_state_dict, path)[self._name(path, own, key)]
        for key, kept in saved.needed(own):
            made = torch.empty(kept.size, dtype=kept.properties.dtype)
            last = self._name(path, own, key)
            self.state_dict[str(key)] = made
            self.mappings[str(key)] = (*path[:-1], last)
            _parent(self.original_state_dict, path)[last] = made

    @staticmethod
    def _name(path: tuple[Any, ...], own: ShardKey, key: ShardKey) -> str:
        """Return how the dict that holds `own` at the end of `path` calls another entry."""
        before = str(own).removesuffix(path[-1])
        return str(key).removeprefix(before)

    def _check(self, own: ShardKey, saved: _Saved) -> None:
        """Raise ValueError where the table is another one in the checkpoint."""
        dim = self.state_dict[str(own._replace(kind=CACHED_ROWS))].shape[1]
        other = saved.one(own.table)[CACHED_ROWS].size[1]
        if dim != other:
            raise ValueError(f"{own.table}: it has dimension {other} in the checkpoint, not {dim}")
        here = {
            key: value
            for key, value in self.state_dict.items()
            if key.startswith((own.table + ROWS, own.table + STATE))
        }
        if not here:
            return  # a shard without rows
        there = saved.arrays(own.table)
        if set(here) != set(there):
            raise ValueError(
                f"{own.table}: the checkpoint has {_names(own.table, there)}, and here it is "
                f"{_names(own.table, here)}: make the module with the precision and the optimizer "
                "of the one that was saved"
            )
        for key, value in here.items():
            has, dtype = there[key], local_part(value).dtype
            if has.size != value.shape or has.properties.dtype != dtype:
                raise ValueError(
                    f"{key} is {has.properties.dtype} {list(has.size)} in the checkpoint, and "
                    f"{dtype} {list(value.shape)} here"
                )


class _Saved:
    """The sharded tables of a checkpoint.

    Attributes
    ----------
    shards : dict of table -> dict of (first, end) -> dict of kind -> metadata
        What there is of each shard.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._others: Kinds = {}
        self.shards: dict[str, dict[tuple[int, int], Kinds]] = {}
        for name, value in metadata.state_dict_metadata.items():
            if not isinstance(value, TensorStorageMetadata):
                continue
            key = ShardKey.parsed(name)
            if key is None:
                self._others[name] = value
            else:
                shards = self.shards.setdefault(key.table, {})
                shards.setdefault((key.first, key.end), {})[key.kind] = value

    def one(self, table: str) -> Kinds:
        """Return what there is of some shard of a table."""
        return next(iter(self.shards[table].values()))

    def arrays(self, table: str) -> Kinds:
        """Return the entries by row of a table."""
        before = table + ROWS, table + STATE
        return {key: value for key, value in self._others.items() if key.startswith(before)}

    def needed(self, own: ShardKey) -> list[tuple[ShardKey, TensorStorageMetadata]]:
        """Return the entries of all shards that hold rows of one; of any shard if it has none."""
        shards, rows = self.shards.get(own.table, {}), (own.first, own.end)
        if own.first == own.end:
            chosen = [rows] if rows in shards else list(shards)[:1]
        else:
            chosen = [one for one in shards if one[0] < own.end and one[1] > own.first]
        return [
            (ShardKey(own.table, *one, kind), kept)
            for one in chosen
            for kind, kept in shards[one].items()
            if kind != SKETCH or one == rows  # of other rows it is of no use
        ]

    def other_columns(self, table: str) -> list[str]:
        """Return the parts that a table's columns were split into, where they are others."""
        whole = whole_table(table)
        return sorted(one for one in self.shards if whole_table(one) == whole)

    def missing(self, table: str) -> str:
        """Say that a table is not there."""
        parts = self.other_columns(table)
        if not parts:
            return f"the checkpoint has no table {table!r}"
        return (
            f"{table}: the checkpoint has its columns as {', '.join(parts)}; packed rows cannot be "
            "split or joined by columns: load it with the plan for columns that it was saved with"
        )


def _names(table: str, entries: dict[str, Any]) -> str:
    return ", ".join(sorted(key.removeprefix(f"{table}.") for key in entries))


def _parent(state_dict: dict[str, Any], path: tuple[Any, ...]) -> Any:
    """Return what holds the last step of a path."""
    found: Any = state_dict
    for step in path[:-1]:
        found = found[step]
    return found
