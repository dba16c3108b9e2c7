"""Errors of a lookup in terms of the features that it was called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpembed.config import TableConfig
from mpembed.torch._feature_order import first_bags


def describe_index_error(
    error: IndexError,
    tables: Sequence[TableConfig],
    features: Any,
    by_table: Sequence[Sequence[str]],
) -> IndexError:
    """Return the error for indices out of range with the name of their feature.

    Parameters
    ----------
    error : IndexError
        The collection's, returned where no index is found to be wrong: it is then that of another
        batch on a device.
    tables : sequence of TableConfig
        The tables.
    features : KeyedJaggedTensor
        The batch, whose offsets are right.
    by_table : sequence of sequence of str
        The features of each table.
    """
    keys, values, offsets = list(features.keys()), features.values(), features.offsets()
    firsts = first_bags(features, len(keys), offsets)
    for table, names in zip(tables, by_table, strict=True):
        for name in names:
            k = keys.index(name)
            own = values[int(offsets[firsts[k]]) : int(offsets[firsts[k + 1]])].long().cpu()
            wrong = ((own < 0) | (own >= table.num_embeddings)).nonzero().flatten()
            if wrong.numel():
                at = int(wrong[0])
                return IndexError(
                    f"feature {name!r} (table {table.name!r}, num_embeddings="
                    f"{table.num_embeddings}): index {int(own[at])} at position {at} of its values "
                    f"is out of range; {wrong.numel()} such in the feature"
                )
    return error
