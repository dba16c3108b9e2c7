"""The shards of tables that a kernel holds, as tables of one collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpembed import collection as core
from mpembed._bindings.contract import MAX_TABLES
from mpembed.config import Init, TableConfig
from mpembed.optim import Optimizer
from mpembed.torch.torchrec._settings import ModuleSettings, OptimizerSettings


@dataclass(frozen=True)
class Shard:
    """Some rows and columns of a table, on this rank.

    Attributes
    ----------
    table : str
        The table's name in TorchRec's configuration.
    first_row, num_rows, total_rows : int
        Its rows first_row .. first_row + num_rows - 1 of total_rows; num_rows may be 0.
    first_column, embedding_dim, total_columns : int
        Its columns first_column .. first_column + embedding_dim - 1 of total_columns.
    collection : mpembed.EmbeddingBagCollection
        What holds the rows.
    key : str
        The shard's name in `collection`.
    """

    table: str
    first_row: int
    num_rows: int
    total_rows: int
    first_column: int
    embedding_dim: int
    total_columns: int
    collection: core.EmbeddingBagCollection
    key: str


def shards_of(
    tables: Sequence[Any], settings: ModuleSettings, pooling: str, device: Any
) -> list[Shard]:
    """Return the shards of a group of TorchRec's, in their order, in a new collection.

    Parameters
    ----------
    tables : sequence of ShardedEmbeddingTable
        The shards, at least one. A table that is split by columns may come several times.
    settings : ModuleSettings
        Of the whole module.
    pooling : str
        ``"sum"``, ``"mean"`` or ``"none"``.
    device : torch.device
        Where the rows lie.

    Raises
    ------
    ValueError
        If a setting does not fit a table.
    """
    places = [_place(table) for table in tables]
    keys = _unique_keys([table.name for table in tables], [column for _, column in places])
    optimizers: dict[OptimizerSettings, Optimizer] = {}
    configs = []
    for table, key, (first_row, first_column) in zip(tables, keys, places, strict=True):
        number = settings.place(table.name)
        own = settings.tables[number]
        optimizer = None
        if own.optimizer is not None:
            if own.optimizer not in optimizers:
                optimizers[own.optimizer] = own.optimizer.make()
            optimizer = optimizers[own.optimizer]
        configs.append(
            TableConfig(
                key,
                table.local_rows,
                table.local_cols,
                own.precision,
                pooling,
                init=own.init if own.init is not None else _initial(table),
                placement=own.placement,
                optimizer=optimizer,
                trainable=own.trainable,
                table_id=_table_id(number, first_column, table, settings),
                first_row=first_row,
                total_rows=table.num_embeddings,
            )
        )
    collection = core.EmbeddingBagCollection(
        configs,
        cache=settings.cache,
        device=device if device.type != "cpu" else "cpu",
        seed=settings.seed,
        rounding=settings.rounding,
        bounds=settings.bounds,
        on_nonfinite=settings.on_nonfinite,
    )
    return [
        Shard(
            table.name,
            first_row,
            table.local_rows,
            table.num_embeddings,
            first_column,
            table.local_cols,
            table.embedding_dim,
            collection,
            key,
        )
        for table, key, (first_row, first_column) in zip(tables, keys, places, strict=True)
    ]


def _place(table: Any) -> tuple[int, int]:
    """Return a shard's first row and column."""
    offsets = table.local_metadata.shard_offsets
    return int(offsets[0]), int(offsets[1])


def _unique_keys(names: Sequence[str], columns: Sequence[int]) -> list[str]:
    """Return names of tables; with its first column where a table comes several times."""
    counts = Counter(names)
    taken = set(counts)
    keys = []
    for name, column in zip(names, columns, strict=True):
        key = name
        if counts[name] > 1:
            key = f"{name}[{column}:]"
            while key in taken:
                key += "'"
        taken.add(key)
        keys.append(key)
    return keys


def _table_id(number: int, first_column: int, table: Any, settings: ModuleSettings) -> int:
    """Return which table a shard is to random bits.

    A row's bits follow its columns from 0 on, so shards of other columns are other tables.
    """
    every = {int(one.shard_offsets[1]) for one in table.global_metadata.shards_metadata}
    count, block = len(settings.names), sorted(every).index(first_column)
    found = count * block + number
    if found >= MAX_TABLES:
        raise ValueError(
            f"table {table.name!r}: {count} tables in {block + 1} blocks of columns are more than "
            f"the {MAX_TABLES} that random bits tell apart: plan fewer column-wise shards, or "
            "split the collection"
        )
    return found


def _initial(table: Any) -> Init | None:
    """Return the initial values of TorchRec's configuration; None for those by default."""
    if table.weight_init_min is None and table.weight_init_max is None:
        return None
    return "uniform", float(table.get_weight_init_min()), float(table.get_weight_init_max())
