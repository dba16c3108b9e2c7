"""The command line of the study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from study import changes, report, results
from study.events import DataError
from study.progress import Display
from study.readers import FORMATS
from study.runner import MODELS, Job, make_model, model_settings, plan, run_all

DOCS = Path(__file__).resolve().parents[2] / "docs"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
OUT = Path("build/study")
SYNTHETIC = "synthetic"
_NAMES = ", ".join(MODELS)


def _fail(message: str) -> NoReturn:
    print(f"study: {message}", file=sys.stderr)
    raise typer.Exit(2)


def chosen_models(text: str) -> list[str]:
    """Return the models of a list separated by commas."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MODELS:
            raise DataError(f"--models: no model {name!r}; known are {_NAMES}")
    return names


def data_paths(given: list[str]) -> dict[str, list[Path | None]]:
    """Return the files of each model by ``MODEL=PATH``; None is the synthetic data."""
    paths: dict[str, list[Path | None]] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if name not in MODELS or not equals or not path:
            raise DataError(f"--data {text!r}: expected MODEL=PATH, MODEL one of {_NAMES}")
        paths.setdefault(name, []).append(None if path == SYNTHETIC else Path(path))
    return paths


def out_path(quick: bool, only_changes: bool) -> Path:
    """Return where finished runs are kept."""
    name = "changes" if only_changes else "results"
    if quick:
        name = "quick_changes" if only_changes else "quick"
    return OUT / f"{name}.jsonl"


def check_settings(
    names: list[str], models: list[str], quick: bool, only_changes: bool = False
) -> None:
    """Refuse names of settings that none of the models has in this build."""
    made = [model_settings(make_model(name), quick, only_changes) for name in models]
    parts = [part for parts in made for part in parts]
    known = dict.fromkeys(setting.name for part in parts for setting in part)
    for name in names:
        if name not in known:
            raise DataError(f"--setting: no {name!r} here; there are {'; '.join(known)}")


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small data and few settings; ten minutes on 2 cores.")
    ] = False,
    only_changes: Annotated[
        bool,
        typer.Option("--changes", help=f"Only the settings of {changes.PAGE}, and write that."),
    ] = False,
    models: Annotated[str, typer.Option(help="Models to run, separated by commas.")] = ",".join(
        MODELS
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting: 0, 1 and so on.")] = 3,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=PATH",
            help="A file for a model instead of synthetic data: clicks in Criteo's format, "
            f"otherwise {FORMATS}. Repeat the option for several files; the PATH {SYNTHETIC!r} "
            "stands for the synthetic data.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Run only this setting, such as 'int4 + 5 % paired' or 'fp32, adam'; repeat the "
            "option for several. Losses need 'fp32' too.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Finished runs, a JSON line each; a rerun skips them.",
            show_default=f"{out_path(False, False)}, others with --quick and --changes",
        ),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page and its plots.", show_default="docs, beside OUT with --quick"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a run.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process.")] = 1,
    only_report: Annotated[
        bool, typer.Option("--report", help="Run nothing; write the page of the runs in OUT.")
    ] = False,
) -> None:
    """Compare settings of the tables on four models: loss to FP32, with the same seeds."""
    out = out or out_path(quick, only_changes)
    try:
        chosen, paths = chosen_models(models), data_paths(data or [])
        done = results.read(out)
        if not only_report:
            todo: list[Job] = []
            keys = {results.run_key(one) for one in done}
            check_settings(setting or [], chosen, quick, only_changes)
            for name in chosen:
                for path in paths.get(name, [None]):
                    more, finished = plan(
                        name, path, quick, seeds, threads, keys, setting, only_changes
                    )
                    said = f"{name}, {path.name if path else SYNTHETIC}"
                    print(f"study: {said}: {finished} done, {len(more)} to do", file=sys.stderr)
                    todo += more
            _run(sorted(todo, key=lambda job: job.part), jobs, out)
            done = results.read(out)
        if not done:
            raise DataError(f"{out}: holds no runs; leave out --report to do some")
        folder = docs or (out.parent if quick else DOCS)
        print((changes if only_changes else report).write(done, folder))
    except DataError as error:
        _fail(str(error))
    except OSError as error:
        where = error.filename or out
        _fail(f"{where}: {error.strerror or error}; choose others with --out and --docs")


def _run(todo: list[Job], jobs: int, out: Path) -> None:
    metrics = {name: make_model(name).metric for name in MODELS}
    with Display(Console(stderr=True), todo, metrics) as display:
        for job, line in run_all(todo, jobs, display.started):
            results.append(out, line)
            display.finished(job, line)
