"""The command line of the comparison."""

from __future__ import annotations

import fnmatch
import sys
from itertools import product
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from models import report, results, runner, worker
from models.cases import KINDS, Case, Kind, Result, Sizes, Training
from models.progress import Display
from models.tables import LEARNERS

#: The optimizer whose originals are trained with several seeds.
NOISY = "lazy_adam"
OUT = Path("build/models/results.jsonl")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _fail(message: str) -> NoReturn:
    print(f"models: {message}", file=sys.stderr)
    raise typer.Exit(2)


def chosen(names: str, known: tuple[str, ...], option: str) -> list[str]:
    """Return the names of a list separated by commas."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in known:
            _fail(f"{option}: no {name!r}; known are {', '.join(known)}")
    return found


def plan(cases: list[Case], learners: list[str], kinds: list[Kind], seeds: int) -> list[Training]:
    """Return the trainings of cases.

    Originals with `NOISY`, if it is among the optimizers, have several seeds: their spread is the
    noise.
    """
    noisy = NOISY if NOISY in learners else learners[0]
    return [
        Training(case, kind, learner, seed)
        for case in cases
        for kind in kinds
        for learner in learners
        for seed in range(seeds if kind == "original" and learner == noisy else 1)
    ]


def find_cases(libraries: list[str], only: list[str], sizes: Sizes) -> list[Case]:
    """Return the cases of libraries whose name, model or key matches one of the patterns."""
    found = [case for name in libraries for case in worker.library(name).cases(sizes)]
    if not only:
        return found
    kept = [
        case
        for case in found
        if any(
            fnmatch.fnmatchcase(text.lower(), pattern.lower())
            for pattern in only
            for text in (case.name, case.model, case.key)
        )
    ]
    if not kept:
        _fail(f"--only: no case matches {' or '.join(only)}")
    return kept


def needed(
    todo: list[Training], done: dict[str, Result], resume: bool, failed: bool
) -> list[Training]:
    """Leave out the trainings that are done, or with `failed` those that succeeded.

    Conversions are left out where the original does not run or has no embeddings.
    """

    def known(one: Training, learner: str) -> Result | None:
        return done.get(Training(one.case, "original", learner, 0).key)

    def hopeless(one: Training) -> bool:
        before = known(one, one.learner)
        return before is not None and not (before["ok"] and before["tables"])

    def has_no_tables(one: Training) -> bool:
        others = [known(one, learner) for learner in LEARNERS]
        return any(run is not None and run["ok"] and not run["tables"] for run in others)

    def wanted(one: Training) -> bool:
        if one.kind == "converted" and hopeless(one):
            return False
        if one.key not in done and has_no_tables(one):
            return False  # one optimizer shows that it runs
        if failed:
            return not done.get(one.key, {"ok": False})["ok"]
        return not (resume and one.key in done)

    return [one for one in todo if wanted(one)]


@app.command()
def main(
    recbole: Annotated[
        Path | None,
        typer.Option(
            help="A checkout of RecBole's repository at v1.2.1, whose tests have the "
            "configurations and the data: git clone --branch v1.2.1 --depth 1 "
            "https://github.com/RUCAIBox/RecBole. Without it RecBole is left out."
        ),
    ] = None,
    libraries: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(
        worker.LIBRARIES
    ),
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A case or model, with * and ?; may be repeated."),
    ] = None,
    learners: Annotated[str, typer.Option(help="Optimizers.")] = ",".join(LEARNERS),
    kinds: Annotated[str, typer.Option(help="Before and after convert.")] = ",".join(KINDS),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the originals.")] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a training batch.")] = 64,
    length: Annotated[int, typer.Option(min=1, help="Items of a sequence at most.")] = 10,
    user_items: Annotated[
        int, typer.Option(min=1, help="Users of RecBole's data with more are left out.")
    ] = 25,
    saved: Annotated[
        bool,
        typer.Option("--saved", help="RecBole saves the best model and loads it for the test."),
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds a training may take.")] = 120.0,
    out: Annotated[Path, typer.Option(help="Results, a JSON line each.")] = OUT,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what OUT holds.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed or is new.")] = False,
    only_report: Annotated[bool, typer.Option("--report", help="Run nothing.")] = False,
) -> None:
    """Train public models before and after convert; write a table of what runs and is equal."""
    if recbole is not None and not (recbole / "tests/model/test_model_auto.py").exists():
        _fail(f"--recbole {recbole}: no tests/model there; give a checkout of the repository")
    checkout = None if recbole is None else str(recbole.absolute())
    sizes = Sizes(epochs, batch, length, user_items, saved, checkout)
    cases = find_cases(chosen(libraries, tuple(worker.LIBRARIES), "--libraries"), only or [], sizes)
    picked: list[Kind] = [kind for kind in KINDS if kind in chosen(kinds, KINDS, "--kinds")]
    if not only_report:
        names = chosen(learners, LEARNERS, "--learners")
        with Display(len(plan(cases, names, picked, seeds))) as display:
            for case, kind in product(cases, picked):  # the original first
                todo = plan([case], names, [kind], seeds)
                todo = needed(todo, results.read(out), resume, failed)
                for found in runner.run_all(todo, sizes, limit, out.parent / "logs"):
                    results.append(out, found)
                    display.finished(found)
    done = results.read(out)
    if not done:
        _fail(f"{out}: holds no results; leave out --report to get some")
    page = report.page(list(done.values()))
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(report.summary(list(done.values())))
