"""Texts that look like lists in categorical columns, where no separator splits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mpembed.train.data.arrow_columns import is_text

_SEPARATORS = "|;,"
_SAMPLE_ROWS = 1000
# Fewer such texts, or a smaller share of all, may be chance.
_FEW, _SHARE = 20, 0.3
_SHOWN = 60  # characters


def list_hint(columns: Mapping[str, pa.Array]) -> str:
    """Return a line on columns that may hold lists, from their first thousand rows; or "".

    Parameters
    ----------
    columns : mapping of str to pyarrow.Array
        Categorical columns by name, not split.
    """
    for name, column in columns.items():
        cells = _texts(column)
        for separator in _SEPARATORS:
            lists = [cell for cell in cells if separator in cell]
            if len(lists) >= max(_FEW, _SHARE * len(cells)) and _are_lists(lists, separator):
                first = lists[0] if len(lists[0]) <= _SHOWN else f"{lists[0][:_SHOWN]}…"
                return (
                    f"column {name!r}: {first!r} and others like it count as one value each; "
                    f"if they are lists, pass --list-separator '{separator}'"
                )
    return ""


def _texts(column: pa.Array) -> list[str]:
    """Return the first texts of a column that are not missing; none of one of another type."""
    kind = column.type
    if not is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        return []
    values: list[Any] = column.slice(0, _SAMPLE_ROWS).to_pylist()
    texts = (v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values)
    return [text for text in texts if text]


def _are_lists(cells: list[str], separator: str) -> bool:
    """Whether cells have different lengths and share values, as prose and compound keys do not."""
    split = [cell.split(separator) for cell in cells]
    values = [value for one in split for value in one]
    return (
        len({len(one) for one in split}) > 1
        and 2 * len(set(values)) < len(values)
        and all(value and value == value.strip() for value in values)
        and not any(cell[0] in "[{(" for cell in cells)
    )
