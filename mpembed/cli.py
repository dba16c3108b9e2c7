"""The command line: ``mpembed info`` and ``mpembed train``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mpembed.info import print_info

if TYPE_CHECKING:
    from mpembed.train.settings import TrainOptions

app = typer.Typer(
    help="Mixed-precision embedding tables with a full-precision cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_TRAIN_PACKAGES = ("torch", "pyarrow", "rich", "matplotlib")


def _fail(message: str, status: int = 2) -> NoReturn:
    """Print one line and leave, by default with the exit status of wrong usage."""
    print(f"mpembed: {message}", file=sys.stderr)
    raise typer.Exit(status)


@app.command()
def info() -> None:
    """Print version, backends and SIMD level."""
    print_info()


def _train(options: Callable[[], TrainOptions], json: Path | None, plot: Path | None) -> None:
    """Train and report; everything that can be refused is refused before training starts."""
    absent = [name for name in _TRAIN_PACKAGES if find_spec(name) is None]
    if absent:
        _fail(f"train needs {', '.join(absent)}; install mpembed[train]")
    from rich.console import Console

    from mpembed.train.clicks import DataError
    from mpembed.train.dataset import TRAIN
    from mpembed.train.plot import write_plot
    from mpembed.train.progress import progress_display
    from mpembed.train.report import check_outputs, print_table, results_table, write_json
    from mpembed.train.runner import open_dataset, run
    from mpembed.train.settings import OptionError
    from mpembed.train.trial import DivergedError

    try:
        chosen = options()
        check_outputs(chosen.data, json, plot)
        dataset = open_dataset(chosen)
        console = Console(stderr=True)
        with progress_display(console, chosen, dataset.ends[TRAIN]) as progress:
            result = run(chosen, dataset, progress)
    except (DataError, OptionError) as error:
        _fail(str(error))
    except DivergedError as error:
        _fail(str(error), status=1)
    except MemoryError:
        _fail("out of memory; try a smaller --dim, --max-rows or --batch-size", status=1)
    # The JSON file comes first, for it holds everything; whatever fails, the rest is still given.
    failures = _written("--json", json, result, write_json)
    print_table(results_table(result))
    failures += _written("--plot", plot, result, write_plot)
    if failures:
        _fail("; ".join(failures), status=1)


def _written(
    option: str, path: Path | None, result: dict[str, Any], write: Callable[..., None]
) -> list[str]:
    """Write a result where it is wanted; return what went wrong, such as a full disk."""
    try:
        if path is not None:
            write(result, path)
    except OSError as error:
        return [f"{option} {path}: cannot be written: {error.strerror or error}"]
    return []


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(help="Clicks in Criteo's format, plain or gzip. [default: synthetic clicks]"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION[:CACHE[:ROUNDING]]",
            help="Table setting to train, several times for several: a precision, the cache as a "
            "share of the rows, stochastic or nearest; such as fp32, int8:0.05, int4:0:nearest. "
            "The first is what the others are compared with. [default: six settings]",
        ),
    ] = None,
    dim: Annotated[int, typer.Option(help="Dimension of the embeddings.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Clicks a step.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 1,
    rows: Annotated[int | None, typer.Option(help="Use the first ROWS clicks only.")] = None,
    optimizer: Annotated[
        str, typer.Option(help="Of the tables: rowwise-adagrad, adagrad or sgd.")
    ] = "rowwise-adagrad",
    lr: Annotated[float, typer.Option(help="Learning rate of the tables.")] = 0.1,
    policy: Annotated[str, typer.Option(help="Of the cache: lfu or lru.")] = "lfu",
    seed: Annotated[int, typer.Option(help="Seed of weights, rows and rounding.")] = 0,
    seeds: Annotated[int, typer.Option(help="Seeds to average over, from SEED on.")] = 1,
    min_count: Annotated[
        int, typer.Option(help="Rarer values of the training part share one row.")
    ] = 1,
    max_rows: Annotated[
        int | None, typer.Option(help="Hash tables that would have more rows to this many.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of PyTorch and of the tables. [default: theirs]")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot loss curves and loss against memory to this file.")
    ] = None,
) -> None:
    """Train a DLRM under several table settings and compare loss, memory and speed."""
    from mpembed.train.settings import DEFAULT_SETTINGS, Setting, TrainOptions

    def options() -> TrainOptions:
        return TrainOptions(
            settings=tuple(Setting.parse(text) for text in setting or DEFAULT_SETTINGS),
            data=data,
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
