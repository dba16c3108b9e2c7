"""The names of entries that a sharded table has in a ``state_dict``."""

from __future__ import annotations

import re
from typing import NamedTuple

from mpembed.config import TableConfig

_SHARDS = "mpembed_shards"
_KEY = re.compile(rf"(?P<table>.+)\.{_SHARDS}\.(?P<first>\d+)-(?P<end>\d+)\.(?P<kind>.+)")
#: Between a table's name and the columns that a part of it has.
COLUMNS = ".columns."
#: Between a table's name and the format of its rows, or the name of a state.
ROWS, STATE = ".rows.", ".state."
#: What is said of a shard, as JSON; each shard has it.
ABOUT = "about"
IDS, CACHED_ROWS, SLOTS, SKETCH = "cached.ids", "cached.rows", "cached.slots", "sketch"
CACHED_STATE = "cached.state."


class ShardKey(NamedTuple):
    """The name of an entry that belongs to rows [first, end) of a table."""

    table: str
    first: int
    end: int
    kind: str

    @classmethod
    def parsed(cls, key: str) -> ShardKey | None:
        """Return the parts of a name, None if it is not of this kind."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        return cls(found["table"], int(found["first"]), int(found["end"]), found["kind"])

    def __str__(self) -> str:
        return f"{self.table}.{_SHARDS}.{self.first}-{self.end}.{self.kind}"


def of_columns(name: str, first: int, end: int) -> str:
    """Return the name of columns [first, end) of a table."""
    return f"{name}{COLUMNS}{first}-{end}"


def whole_table(name: str) -> str:
    """Return the name of the table that a name, perhaps of some of its columns, is of."""
    return name.partition(COLUMNS)[0]


def array_key(name: str, config: TableConfig, field: str) -> str:
    """Return the name of the entry with a table's rows, or with a state."""
    return f"{name}{ROWS}{config.precision}" if field == "rows" else f"{name}{STATE}{field}"


def total_rows(config: TableConfig) -> int:
    """Return how many rows the whole table has."""
    least = config.first_row + config.num_embeddings
    return least if config.total_rows is None else config.total_rows
