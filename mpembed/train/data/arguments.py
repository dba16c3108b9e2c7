"""The options of the command line that say which data to read, and how."""

from __future__ import annotations

from typing import Annotated

import typer

from mpembed.train.data.options import TRANSFORMS

_COLUMNS = (
    "names, positions from 1, ranges such as 2-14 or C1-C9, patterns such as 'C*', with commas"
)

Data = Annotated[
    list[str] | None,
    typer.Option(
        help="File of clicks, or a quoted glob; repeat the option for several files, in order of "
        "time. Criteo's format, or CSV, TSV or Parquet with --categorical; text may be gzip or "
        "zstd.",
        show_default="synthetic clicks",
    ),
]
ScoreData = Annotated[
    list[str] | None,
    typer.Option(
        help="File of clicks, or a quoted glob; repeat the option for several files. They have "
        "the columns that the model was trained on; text may be gzip or zstd.",
        show_default="synthetic clicks, if the model was trained on them",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(help="Column of the label, by name or position.", show_default="label"),
]
Dense = Annotated[
    list[str] | None,
    typer.Option(help=f"Columns of numbers: {_COLUMNS}.", show_default="none"),
]
Categorical = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Columns of strings, integers or lists of them: {_COLUMNS}.",
        show_default="Criteo's format",
    ),
]
Header = Annotated[
    bool | None,
    typer.Option(
        help="Whether text files start with the columns' names.", show_default="recognised"
    ),
]
ScoreHeader = Annotated[
    bool | None,
    typer.Option(
        help="Whether text files start with the columns' names.",
        show_default="as the training data",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="Character between the cells of text files.",
        show_default="recognised",
    ),
]
ListSeparator = Annotated[
    str | None,
    typer.Option(
        help="Character between the values of a categorical text.",
        show_default="one value a cell",
    ),
]
ScoreListSeparator = Annotated[
    str | None,
    typer.Option(
        help="Character between the values of a categorical text.",
        show_default="as in training",
    ),
]
DenseTransform = Annotated[
    str,
    typer.Option(
        help=f"What numbers become: {', '.join(TRANSFORMS[:-1])} or {TRANSFORMS[-1]}. auto takes "
        "the logarithm of columns of whole numbers and standardises the others."
    ),
]
