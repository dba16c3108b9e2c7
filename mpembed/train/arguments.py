"""The options of ``mpembed train`` except those of its data, as Typer declares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mpembed.train.data.options import DataOptions
from mpembed.train.data.synthetic import DEFAULT_ROWS
from mpembed.train.settings import (
    DEFAULT_LR,
    DEFAULT_LRS,
    DEFAULT_SETTINGS,
    OPTIMIZERS,
    POLICIES,
    PRECISIONS,
    ROUNDINGS,
    Setting,
    TrainOptions,
)


def _one_of(names: Iterable[str]) -> str:
    """Return a list of choices for a help text."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


Settings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PRECISION[:CACHE[:ROUNDING]]",
        help="Table setting to train; repeat the option to compare several with the first. "
        f"PRECISION is {_one_of(PRECISIONS)}. CACHE is the cache rows as a share of the table "
        f"rows, 0 to 1; {Setting.load_factor:g} by default. ROUNDING is {_one_of(ROUNDINGS)}; "
        f"{Setting.rounding} by default.",
        show_default=" ".join(DEFAULT_SETTINGS),
    ),
]
Dim = Annotated[int, typer.Option(help="Dimension of the embeddings.")]
BatchSize = Annotated[int, typer.Option(help="Clicks a step, of all ranks together.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training part.")]
Rows = Annotated[
    int | None,
    typer.Option(
        help="Use the first ROWS clicks only.",
        show_default=f"all of the data, or {DEFAULT_ROWS:,} synthetic clicks",
    ),
]
OptimizerName = Annotated[
    str, typer.Option(help=f"Optimizer of the tables: {_one_of(OPTIMIZERS)}.")
]
Lr = Annotated[
    float | None,
    typer.Option(
        help="Learning rate of the tables.",
        show_default=f"{DEFAULT_LR:g}; "
        + ", ".join(f"{rate:g} with {name}" for name, rate in DEFAULT_LRS.items()),
    ),
]
Policy = Annotated[str, typer.Option(help=f"Replacement policy of the cache: {_one_of(POLICIES)}.")]
Seed = Annotated[int, typer.Option(help="Seed of the weights, the rows and the rounding.")]
Seeds = Annotated[
    int, typer.Option(help="Number of seeds to average over: SEED, SEED + 1 and so on.")
]
MinCount = Annotated[
    int, typer.Option(help="Values that the training part holds less often share one row.")
]
MaxRows = Annotated[
    int | None,
    typer.Option(help="Most rows of a table; larger ones are hashed.", show_default="no limit"),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of PyTorch and of mpembed each.", show_default="their own"),
]
Json = Annotated[
    Path | None,
    typer.Option(
        help="Write all results to this file; - is standard output, and the table then goes to "
        "standard error."
    ),
]
Plot = Annotated[
    Path | None, typer.Option(help="Plot loss curves and loss against memory to this file.")
]
Save = Annotated[
    Path | None,
    typer.Option(help="Save the model to this folder at the end; one setting and one seed."),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(help="Save every SAVE_EVERY steps, too.", show_default="at the end only"),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Go on from the model in this folder, with its options, and save there again unless "
        "--save names another one."
    ),
]
Logdir = Annotated[
    Path | None,
    typer.Option(help="Write curves for TensorBoard to this folder; needs tensorboard."),
]

#: Names of the command line whose options have other ones.
_OTHER_NAMES = {"setting": "settings", "data": "files"}
_DATA = {one.name for one in fields(DataOptions)}
_RUN = {one.name for one in fields(TrainOptions)}


def data_options(values: Mapping[str, Any]) -> DataOptions:
    """Return the options of the data, from the values of the command line by name."""
    lists: dict[str, Any] = {
        own: tuple(values[name] or ())
        for name, own in (("data", "files"), ("dense", "dense"), ("categorical", "categorical"))
    }
    return DataOptions(**lists, **{name: values[name] for name in _DATA - set(lists)})


def train_options(values: Mapping[str, Any]) -> TrainOptions:
    """Return the options of a run, from the values of the command line by name."""
    texts = values["setting"] or DEFAULT_SETTINGS
    settings = tuple(Setting.parse(text) for text in texts)
    rest = {name: values[name] for name in _RUN - {"settings", "data"}}
    return TrainOptions(settings=settings, data=data_options(values), **rest)


def given_options(values: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Return those options of a run that were given, by the names of `TrainOptions` and its data.

    Parameters
    ----------
    values : mapping
        All values of the command line, by name.
    given : iterable of str
        Names of those that were given there or in a file.
    """
    # What was not given is in the saved run: here it only lets the rest pass as options of a whole.
    rest = {name: values[name] or ["-"] for name in ("data", "categorical")}
    options = train_options({**values, **rest})
    found = {}
    for name in given:
        own = _OTHER_NAMES.get(name, name)
        if own in _DATA:
            found[own] = getattr(options.data, own)
        elif own in _RUN:
            found[own] = getattr(options, own)
    return found
