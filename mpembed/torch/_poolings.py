"""Which module takes which tables, so that a refusal names the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpembed.collection import EmbeddingBagCollection
from mpembed.config import TableConfig
from mpembed.torch._options import MODES


def module_of(tables: Sequence[TableConfig]) -> str | None:
    """Return the name of the class for these tables; None where some are pooled, others not."""
    unpooled = [table.pooling == "none" for table in tables]
    if any(unpooled) and not all(unpooled):
        return None
    if unpooled[0]:
        return "Embedding" if len(tables) == 1 else "EmbeddingCollection"
    return "EmbeddingBag" if len(tables) == 1 else "EmbeddingBagCollection"


def _way_out(tables: Sequence[TableConfig]) -> str:
    module = module_of(tables)
    if module is not None:
        return f"use mpembed.torch.{module}"
    return (
        "make a collection of the unpooled tables for mpembed.torch.EmbeddingCollection, and one "
        "of the others for mpembed.torch.EmbeddingBagCollection"
    )


def refuse_unpooled(tables: Sequence[TableConfig]) -> None:
    """Raise ValueError for a table without pooling where bags are made."""
    for table in tables:
        if table.pooling == "none":
            raise ValueError(f"table {table.name!r} has pooling 'none': {_way_out(tables)}")


def refuse_pooled(tables: Sequence[TableConfig]) -> None:
    """Raise ValueError for a table with pooling where each index gets its row."""
    for table in tables:
        if table.pooling != "none":
            other = _way_out(tables)
            raise ValueError(
                f"table {table.name!r} has pooling {table.pooling!r}: give it pooling='none', or "
                f"{other}"
            )


def refuse_other_collections(collection: Any, what: str) -> None:
    """Raise an error for what is no collection with the one table of the module of this name."""
    if not isinstance(collection, EmbeddingBagCollection):
        raise TypeError(
            f"collection must be an mpembed.EmbeddingBagCollection, got {type(collection).__name__}"
        )
    tables = collection.tables
    if len(tables) != 1 or module_of(tables) != what:
        poolings = {table.name: table.pooling for table in tables}
        kind = "'none'" if what == "Embedding" else " or ".join(map(repr, MODES))
        raise ValueError(
            f"collection must have one table, with pooling {kind}, got tables with pooling "
            f"{poolings}: {_way_out(tables)}"
        )
