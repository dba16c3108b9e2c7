"""A collection in a few lines, for a person at a prompt."""

from mpembed._collection.settings import Settings
from mpembed.config import TableConfig
from mpembed.optim import Optimizer

_TABLES_SHOWN = 8


def describe_training(table: TableConfig, trains: Optimizer | None) -> str:
    """Return how a table is trained, where it is not just by the collection's optimizer."""
    if trains is None:
        return ", frozen"
    if table.optimizer is not None:
        return f", {type(trains).__name__}(lr={trains.lr!r})"
    return "" if table.lr is None else f", lr={trains.lr!r}"


def describe(settings: Settings, nbytes: int) -> str:
    """Return what ``repr`` of a collection gives; of many tables the first few."""
    tables, optimizer = settings.tables, settings.optimizer
    total = sum(table.num_embeddings for table in tables)
    lines = [
        f"<EmbeddingBagCollection on {settings.device.name}: {len(tables):,} table(s), "
        f"{total:,} rows, {nbytes:,} bytes"
    ]
    for table, trains in zip(tables[:_TABLES_SHOWN], settings.optimizers, strict=False):
        size = f"{table.num_embeddings:,} x {table.embedding_dim}"
        training = describe_training(table, trains)
        lines.append(f"{table.name!r}: {size} {table.precision}, pooling {table.pooling}{training}")
    if len(tables) > _TABLES_SHOWN:
        lines.append(f"... {len(tables) - _TABLES_SHOWN:,} more")
    lines.append("no cache" if settings.cache is None else repr(settings.cache))
    lines.append("no shared optimizer" if optimizer is None else repr(optimizer))
    return "\n  ".join(lines) + ">"
