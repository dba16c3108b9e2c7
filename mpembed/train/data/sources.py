"""Open the clicks of a run: generated ones, or files of any kind that is known."""

from __future__ import annotations

from pathlib import Path

from mpembed.train.data.clicks import Columns, Source
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.options import DataOptions
from mpembed.train.data.synthetic import DEFAULT_ROWS, SyntheticSource


def open_source(
    options: DataOptions, rows: int | None = None, columns: Columns | None = None
) -> Source:
    """Open the data of a run.

    Parameters
    ----------
    options : DataOptions
        Files and columns; without files the clicks are synthetic.
    rows : int, optional
        Use the first `rows` clicks only.
    columns : Columns, optional
        Those of a stored encoding: the same columns are taken, and the label may be absent.

    Returns
    -------
    Source
        Raw clicks.

    Raises
    ------
    DataError
        If a file cannot be used; bad rows are found when they are read.
    """
    if not options.files:
        return SyntheticSource(rows or DEFAULT_ROWS)
    return CriteoFile(Path(options.files[0]), rows)
