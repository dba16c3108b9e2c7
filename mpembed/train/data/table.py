"""What text and Parquet files of any columns have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mpembed.train.data import arrow_columns
from mpembed.train.data.clicks import MISSING_LABEL, Clicks, Columns
from mpembed.train.data.list_hint import list_hint
from mpembed.train.data.selection import Selection


def to_clicks(
    found: Mapping[int, pa.Array],
    rows: int,
    selection: Selection,
    columns: Columns,
    separator: str | None,
) -> Clicks:
    """Return rows of pyarrow's columns as raw clicks.

    Parameters
    ----------
    found : mapping of int to pyarrow.Array
        The columns by their places.
    rows : int
        Their length.
    selection : Selection
        Which columns are taken.
    columns : Columns
        Their names.
    separator : str or None
        What separates the values in a categorical text, if anything does.

    Returns
    -------
    Clicks
        The numbers are float64.

    Raises
    ------
    mpembed.train.data.arrow_columns.BadValueError
        If a value cannot be used.
    """
    labels = (
        np.full(rows, MISSING_LABEL, np.int64)
        if selection.label is None
        else arrow_columns.labels(found[selection.label], columns.label, selection.partly_labelled)
    )
    dense = np.empty((len(selection.dense), rows))
    for row, (place, name) in enumerate(zip(selection.dense, columns.dense, strict=True)):
        dense[row] = arrow_columns.numbers(found[place], name)
    pairs = list(zip(selection.categorical, columns.categorical, strict=True))
    if columns.bags:
        none = np.empty((0, rows), np.int64)
        bags = tuple(arrow_columns.bags(found[place], name, separator) for place, name in pairs)
        return Clicks(labels, dense, none, bags)
    cats = np.empty((len(pairs), rows), np.int64)
    for row, (place, name) in enumerate(pairs):
        cats[row] = arrow_columns.keys(found[place], name)
    return Clicks(labels, dense, cats)


def first_hint(
    found: Mapping[int, pa.Array], selection: Selection, columns: Columns, separator: str | None
) -> str:
    """Return what is to be said of the first rows of a file, or ""; see `to_clicks`."""
    if separator is not None:
        return ""
    pairs = zip(columns.categorical, selection.categorical, strict=True)
    return list_hint({name: found[place] for name, place in pairs})


def noted(described: dict[str, Any], hint: str | None) -> dict[str, Any]:
    """Return a description of a file with what is to be said of it, if anything is."""
    return {**described, "note": hint} if hint else described


def make_columns(selection: Selection, bags: bool, header: bool) -> Columns:
    """Return the columns of a selection by name.

    Parameters
    ----------
    selection : Selection
        The chosen ones, and all names.
    bags, header : bool
        See `Columns`.

    Returns
    -------
    Columns
        The names.
    """
    names = selection.names
    return Columns(
        tuple(names[place] for place in selection.dense),
        tuple(names[place] for place in selection.categorical),
        selection.label_name,
        bags,
        names,
        header,
    )


def describe_columns(columns: Columns, has_label: bool) -> str:
    """Return what is taken from a file, for a person."""
    label = f"label {columns.label!r}" if has_label else "no label"
    lists = " with lists" if columns.bags else ""
    return f"{label}, {len(columns.dense)} dense, {len(columns.categorical)} categorical{lists}"
