"""A collection in a few lines, for a person at a prompt."""

from collections.abc import Sequence

from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer

_TABLES_SHOWN = 8


def describe(
    tables: Sequence[TableConfig],
    cache: CacheConfig | None,
    optimizer: Optimizer,
    device: str,
    nbytes: int,
) -> str:
    """Return what ``repr`` of a collection gives; of many tables the first few."""
    total = sum(table.num_embeddings for table in tables)
    lines = [
        f"<EmbeddingBagCollection on {device}: {len(tables):,} table(s), {total:,} rows, "
        f"{nbytes:,} bytes"
    ]
    for table in tables[:_TABLES_SHOWN]:
        size = f"{table.num_embeddings:,} x {table.embedding_dim}"
        lines.append(f"{table.name!r}: {size} {table.precision}, pooling {table.pooling}")
    if len(tables) > _TABLES_SHOWN:
        lines.append(f"... {len(tables) - _TABLES_SHOWN:,} more")
    lines.append("no cache" if cache is None else repr(cache))
    return "\n  ".join([*lines, f"{optimizer!r}>"])
