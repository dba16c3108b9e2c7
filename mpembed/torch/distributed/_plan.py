"""Where the rows of each table are, and how many bytes a step sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpembed._arguments.scalars import finite, integer
from mpembed._collection.settings import refuse_shared_rows
from mpembed.config import TableConfig
from mpembed.torch._sharded_names import total_rows

EXCHANGES = ("auto", "rows", "pooled")


@dataclass(frozen=True)
class TableWise:
    """All rows of a table on one rank.

    Parameters
    ----------
    rank : int
        The owner, a rank of the process group.
    """

    rank: int


@dataclass(frozen=True)
class RowWise:
    """A table in contiguous blocks of rows, one a rank.

    Parameters
    ----------
    mean_length : float
        Mean number of indices of a bag, for the choice of the exchange.
    exchange : str
        ``"rows"``: the row of each index travels, and is pooled on the rank of the bag.
        ``"pooled"``: each rank pools its rows of every bag, and the partial sums travel.
        ``"auto"``: rows where `mean_length` is at most the number of ranks, as they then take
        fewer bytes.
    """

    mean_length: float = 1.0
    exchange: str = "auto"


Plan = Mapping[str, TableWise | RowWise]


@dataclass(frozen=True)
class ShardedTable:
    """A table and its shards.

    Attributes
    ----------
    config : TableConfig
        The whole table.
    ranks : range
        That have a shard, in the order of the rows.
    block : int
        Rows of each shard; the last ones may have fewer, or none.
    sends_rows : bool
        Whether the row of each index travels; otherwise what bags are pooled to.
    """

    config: TableConfig
    ranks: range
    block: int
    sends_rows: bool

    def shard(self, rank: int) -> TableConfig:
        """Return the rows of a rank as a table, which may have none."""
        whole, last = self.config, self.config.num_embeddings
        first, end = last, last
        if rank in self.ranks:
            place = self.ranks.index(rank)
            first, end = (min(n * self.block, last) for n in (place, place + 1))
        pooling = "none" if self.sends_rows else "sum" if len(self.ranks) > 1 else whole.pooling
        rows: dict[str, Any] = {"num_embeddings": end - first, "total_rows": total_rows(whole)}
        return replace(whole, first_row=whole.first_row + first, pooling=pooling, **rows)

    def values(self, bags: int, count: int) -> int:
        """Return how many floats a shard answers to this many bags and indices."""
        return (count if self.sends_rows else bags) * self.config.embedding_dim

    def wire_bytes(
        self, rank: int, ranks: int, bags: int, length: float, index_bytes: int, *, weighted: bool
    ) -> float:
        """Return what a rank sends to others in a training step: see the module's method."""
        asked = len(self.ranks) - (rank in self.ranks)  # shards elsewhere
        asking = (ranks - 1) * (rank in self.ranks)  # others, where this rank has a shard
        here = self.shard(rank).num_embeddings / max(self.config.num_embeddings, 1)
        lookups = bags * length
        numbers = lookups * (1 - here)
        if self.sends_rows:
            gradients, answers = numbers, lookups * here * asking
        else:
            numbers = numbers * (1 + weighted) + asked * bags
            gradients, answers = asked * bags, asking * bags
        vectors = 4 * self.config.embedding_dim * (gradients + answers)
        return index_bytes * numbers + vectors + 2 * 8 * asked  # counts of both headers


def shard_tables(tables: Sequence[TableConfig], plan: Plan, ranks: int) -> list[ShardedTable]:
    """Return the shards of each table; TypeError or ValueError where the plan is wrong."""
    if not tables or not all(isinstance(table, TableConfig) for table in tables):
        raise TypeError("tables must be a non-empty sequence of TableConfig")
    names = [table.name for table in tables]
    if set(plan) != set(names):
        raise ValueError(f"plan must have the tables {names}, got {list(plan)}")
    refuse_shared_rows(tables)  # of tables on different ranks, too
    return [
        _sharded(replace(t, table_id=i if t.table_id is None else t.table_id), plan[t.name], ranks)
        for i, t in enumerate(tables)
    ]


def _sharded(table: TableConfig, how: TableWise | RowWise, ranks: int) -> ShardedTable:
    of = f"of table {table.name!r} in plan"
    if isinstance(how, TableWise):
        owner = integer(f"rank {of}", how.rank, 0, ranks - 1)
        return ShardedTable(table, range(owner, owner + 1), max(table.num_embeddings, 1), False)
    if not isinstance(how, RowWise):
        raise TypeError(f"entry {of} must be TableWise(rank) or RowWise(), got {how!r}")
    if how.exchange not in EXCHANGES:
        raise ValueError(f"exchange {of} must be one of {EXCHANGES}, got {how.exchange!r}")
    fewer = finite(f"mean_length {of}", how.mean_length, 0.0) <= ranks
    sends_rows = fewer if how.exchange == "auto" else how.exchange == "rows"
    return ShardedTable(table, range(ranks), max(1, -(-table.num_embeddings // ranks)), sends_rows)
