"""The command line: ``mpembed info``, ``mpembed train`` and ``mpembed score``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from mpembed.info import print_info
from mpembed.train import PACKAGES, SCORE_PACKAGES, arguments
from mpembed.train.config_file import read_config
from mpembed.train.data import arguments as data_arguments
from mpembed.train.data.options import DataOptions, OptionError
from mpembed.train.interrupts import Interrupted, Interrupts
from mpembed.train.settings import TrainOptions
from mpembed.train.streams import is_stdout, output_path

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


def _need(command: str, packages: Sequence[str]) -> None:
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        _fail(f"{command} needs {', '.join(absent)}; install mpembed[train]")


@app.command()
def info() -> None:
    """Print the version, the backends, the SIMD level and the devices."""
    print_info()


def _use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options that a file has for the defaults of the command line."""
    if path is not None:
        hints = get_type_hints(train)
        options = {k: v for k, v in hints.items() if k not in ("context", "config", "return")}
        try:
            context.default_map = read_config(path, options)
        except OptionError as error:
            _fail(str(error))
    return path


@app.command()
def train(
    context: typer.Context,
    data: data_arguments.Data = None,
    label: data_arguments.Label = DataOptions.label,
    dense: data_arguments.Dense = None,
    categorical: data_arguments.Categorical = None,
    header: data_arguments.Header = DataOptions.header,
    delimiter: data_arguments.Delimiter = DataOptions.delimiter,
    list_separator: data_arguments.ListSeparator = DataOptions.list_separator,
    dense_transform: data_arguments.DenseTransform = DataOptions.dense_transform,
    setting: arguments.Settings = None,
    dim: arguments.Dim = TrainOptions.dim,
    batch_size: arguments.BatchSize = TrainOptions.batch_size,
    epochs: arguments.Epochs = TrainOptions.epochs,
    rows: arguments.Rows = TrainOptions.rows,
    optimizer: arguments.OptimizerName = TrainOptions.optimizer,
    lr: arguments.Lr = TrainOptions.lr,
    policy: arguments.Policy = TrainOptions.policy,
    seed: arguments.Seed = TrainOptions.seed,
    seeds: arguments.Seeds = TrainOptions.seeds,
    min_count: arguments.MinCount = TrainOptions.min_count,
    max_rows: arguments.MaxRows = TrainOptions.max_rows,
    threads: arguments.Threads = TrainOptions.threads,
    json: arguments.Json = None,
    plot: arguments.Plot = None,
    save: arguments.Save = None,
    save_every: arguments.SaveEvery = None,
    resume: arguments.Resume = None,
    logdir: arguments.Logdir = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of options, by their names here; those of the command line win.",
            callback=_use_config,
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Train a DLRM under one table setting, or under several to compare loss, memory and speed."""
    _need("train", PACKAGES)
    values = context.params
    given = [name for name in values if not _is_default(context, name)]
    try:
        with Interrupts() as interrupts:
            from mpembed.train.job import Request
            from mpembed.train.job import train as run  # takes seconds, as PyTorch does

            request = Request(
                options=lambda: arguments.train_options(values),
                given=lambda: arguments.given_options(values, given),
                json=output_path(json),
                plot=plot,
                save=save,
                save_every=save_every,
                resume=resume,
                logdir=logdir,
            )
            status = run(request, interrupts)
    except Interrupted:
        if not interrupts.quiet:
            _fail(f"{interrupts.name} before training: nothing to report", interrupts.status)
        status = interrupts.status
    raise typer.Exit(status)


def _is_default(context: typer.Context, name: str) -> bool:
    source: Any = context.get_parameter_source(name)
    return source is None or source.name == "DEFAULT"


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="Folder that mpembed train --save has written.")],
    data: data_arguments.ScoreData = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the scores to this file, CSV or Parquet; - is standard output, as CSV, and "
            "the metrics then go to standard error.",
            show_default="metrics only",
        ),
    ] = None,
    rows: arguments.Rows = None,
    header: data_arguments.ScoreHeader = DataOptions.header,
    delimiter: data_arguments.Delimiter = DataOptions.delimiter,
    list_separator: data_arguments.ScoreListSeparator = DataOptions.list_separator,
) -> None:
    """Score clicks by a saved model, and measure it where labels are there; without PyTorch."""
    _need("score", SCORE_PACKAGES)
    out = output_path(out)
    from mpembed.train.array_file import DamagedError
    from mpembed.train.data.clicks import DataError
    from mpembed.train.data.files import expand
    from mpembed.train.report import check_outputs
    from mpembed.train.score import score as run

    try:
        options = DataOptions(
            files=tuple(data or ()),
            header=header,
            delimiter=delimiter,
            list_separator=list_separator,
        )
        check_outputs(expand(options.files), {"--out": out})
        with Interrupts() as interrupts:
            found = run(model, options, rows, out)
    except (DamagedError, DataError, OptionError) as error:
        _fail(str(error))
    except OSError as error:
        if out is None:
            raise
        _fail(f"--out {out}: cannot be written: {error.strerror or error}", 1)
    except MemoryError:
        _fail("out of memory", 1)
    except Interrupted:
        _fail(f"{interrupts.name}: nothing was written", interrupts.status)
    if found.note:
        typer.echo(f"mpembed: {found.note}", err=True)
    typer.echo(str(found), err=out is not None and is_stdout(out))
