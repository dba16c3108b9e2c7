"""The command line: ``mpembed info`` and ``mpembed train``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mpembed.info import print_info
from mpembed.train import PACKAGES
from mpembed.train.data import arguments
from mpembed.train.data.options import DataOptions, OptionError
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

app = typer.Typer(
    help="Mixed-precision embedding tables with a full-precision cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _fail(message: str, status: int = 2) -> NoReturn:
    """Print one line and leave, by default with the exit status of wrong usage."""
    print(f"mpembed: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _one_of(names: Iterable[str]) -> str:
    """Return a list of choices for a help text."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


@app.command()
def info() -> None:
    """Print the version, the backends, the SIMD level and the devices."""
    print_info()


def _train(options: Callable[[], TrainOptions], json: Path | None, plot: Path | None) -> None:
    """Train and report; whatever can be refused is refused before training starts."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        _fail(f"train needs {', '.join(absent)}; install mpembed[train]")
    from rich.console import Console

    from mpembed.train.data.clicks import DataError
    from mpembed.train.data.dataset import TRAIN
    from mpembed.train.data.files import expand
    from mpembed.train.data.sources import describe_source
    from mpembed.train.plot import write_plot
    from mpembed.train.progress import progress_display
    from mpembed.train.report import (
        check_outputs,
        print_table,
        results_table,
        rounding_notes,
        write_json,
    )
    from mpembed.train.runner import open_dataset, run
    from mpembed.train.trial import DivergedError

    try:
        chosen = options()
        check_outputs(expand(chosen.data.files), json, plot)
        dataset = open_dataset(chosen)
        if recognised := describe_source(dataset.source):
            print(f"mpembed: {recognised}", file=sys.stderr)
        console = Console(stderr=True)
        with progress_display(console, chosen, dataset.ends[TRAIN]) as progress:
            result = run(chosen, dataset, progress)
    except (DataError, OptionError) as error:
        _fail(str(error))
    except DivergedError as error:
        _fail(str(error), status=1)
    except MemoryError:
        _fail("out of memory; try a smaller --dim, --max-rows or --batch-size", status=1)
    # The JSON file holds everything, so it comes first. A failure does not stop the other outputs.
    failures = _write_output("--json", json, result, write_json)
    print_table(results_table(result))
    for note in rounding_notes(result):
        typer.echo(note)
    failures += _write_output("--plot", plot, result, write_plot)
    if failures:
        _fail("; ".join(failures), status=1)


def _write_output(
    option: str, path: Path | None, result: dict[str, Any], write: Callable[..., None]
) -> list[str]:
    """Write a result file, if one was asked for; return what went wrong, such as a full disk."""
    try:
        if path is not None:
            write(result, path)
    except OSError as error:
        return [f"{option} {path}: cannot be written: {error.strerror or error}"]
    return []


@app.command()
def train(
    data: arguments.Data = None,
    label: arguments.Label = DataOptions.label,
    dense: arguments.Dense = None,
    categorical: arguments.Categorical = None,
    header: arguments.Header = DataOptions.header,
    delimiter: arguments.Delimiter = DataOptions.delimiter,
    list_separator: arguments.ListSeparator = DataOptions.list_separator,
    dense_transform: arguments.DenseTransform = DataOptions.dense_transform,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION[:CACHE[:ROUNDING]]",
            help="Table setting to train; repeat the option to compare several with the first. "
            f"PRECISION is {_one_of(PRECISIONS)}. CACHE is the cache rows as a share of the table "
            f"rows, 0 to 1; {Setting.load_factor:g} by default. ROUNDING is {_one_of(ROUNDINGS)}; "
            f"{Setting.rounding} by default.",
            show_default=" ".join(DEFAULT_SETTINGS),
        ),
    ] = None,
    dim: Annotated[int, typer.Option(help="Dimension of the embeddings.")] = TrainOptions.dim,
    batch_size: Annotated[int, typer.Option(help="Clicks a step.")] = TrainOptions.batch_size,
    epochs: Annotated[
        int, typer.Option(help="Passes over the training part.")
    ] = TrainOptions.epochs,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Use the first ROWS clicks only.",
            show_default=f"the whole file, or {DEFAULT_ROWS:,} synthetic clicks",
        ),
    ] = TrainOptions.rows,
    optimizer: Annotated[
        str, typer.Option(help=f"Optimizer of the tables: {_one_of(OPTIMIZERS)}.")
    ] = TrainOptions.optimizer,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the tables.",
            show_default=f"{DEFAULT_LR:g}; "
            + ", ".join(f"{rate:g} with {name}" for name, rate in DEFAULT_LRS.items()),
        ),
    ] = TrainOptions.lr,
    policy: Annotated[
        str, typer.Option(help=f"Replacement policy of the cache: {_one_of(POLICIES)}.")
    ] = TrainOptions.policy,
    seed: Annotated[
        int, typer.Option(help="Seed of the weights, the rows and the rounding.")
    ] = TrainOptions.seed,
    seeds: Annotated[
        int, typer.Option(help="Number of seeds to average over: SEED, SEED + 1 and so on.")
    ] = TrainOptions.seeds,
    min_count: Annotated[
        int,
        typer.Option(help="Values that the training part holds less often share one row."),
    ] = TrainOptions.min_count,
    max_rows: Annotated[
        int | None,
        typer.Option(help="Most rows of a table; larger ones are hashed.", show_default="no limit"),
    ] = TrainOptions.max_rows,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of PyTorch and of mpembed each.", show_default="their own"),
    ] = TrainOptions.threads,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot loss curves and loss against memory to this file.")
    ] = None,
) -> None:
    """Train a DLRM under several table settings and compare loss, memory and speed."""

    def options() -> TrainOptions:
        return TrainOptions(
            settings=tuple(Setting.parse(text) for text in setting or DEFAULT_SETTINGS),
            data=DataOptions(
                files=tuple(data or ()),
                label=label,
                dense=tuple(dense or ()),
                categorical=tuple(categorical or ()),
                header=header,
                delimiter=delimiter,
                list_separator=list_separator,
                dense_transform=dense_transform,
            ),
            dim=dim,
            batch_size=batch_size,
            epochs=epochs,
            rows=rows,
            optimizer=optimizer,
            lr=lr,
            policy=policy,
            seed=seed,
            seeds=seeds,
            min_count=min_count,
            max_rows=max_rows,
            threads=threads,
        )

    _train(options, json, plot)
