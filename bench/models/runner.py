"""Runs cases in processes of their own, with a time limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

from models import worker
from models.cases import Result, Sizes, Training

# torch._dynamo: the first step of an optimizer imports it.
_PRELOADED = ["torch", "torch._dynamo", "pandas", "scipy.sparse", "sklearn.metrics"]


def run_all(
    trainings: list[Training], sizes: Sizes, limit: float, logs: Path
) -> Iterator[list[Result]]:
    """Run trainings, those of a case and kind in one process; yield the results of each process.

    Parameters
    ----------
    trainings : list of Training
        What to run, ordered by case and kind.
    sizes : Sizes
        How long the runs are.
    limit : float
        Seconds that one training may take.
    logs : Path
        Folder of what the processes print.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    logs.mkdir(parents=True, exist_ok=True)
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)  # imported once, not by every process
    for (case, kind), group in groupby(trainings, lambda one: (one.case.key, one.kind)):
        log = logs.absolute() / f"{case.replace('/', '-')}-{kind}.log"
        yield _run_group(list(group), sizes, limit, log)


def _run_group(todo: list[Training], sizes: Sizes, limit: float, log: Path) -> list[Result]:
    """Run trainings in one process; in a new one after a crash or when the time is up."""
    results: list[Result] = []
    while len(results) < len(todo):
        results += _run_process(todo[len(results) :], sizes, limit, log)
    return results


def _run_process(todo: list[Training], sizes: Sizes, limit: float, log: Path) -> list[Result]:
    context = get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=worker.run_all, args=(todo, sizes, theirs, str(log)))
    process.start()
    theirs.close()
    results: list[Result] = []
    end, reason = monotonic() + limit, ""
    try:
        while len(results) < len(todo):
            if not ours.poll(max(0.0, end - monotonic())):
                reason = f"no result after {limit:g} s"
                process.kill()
                break
            what, value = ours.recv()
            if what == "start":
                end = monotonic() + limit
            else:
                results.append(value)
    except EOFError:
        process.join()
        reason = f"the process ended with {process.exitcode}"
    process.join()
    if reason:
        failed = {"ok": False, "stage": "process", "error": reason, "trace": _tail(log)}
        results.append({**worker.describe(todo[len(results)]), **failed, "seconds": limit})
    return results


def _tail(log: Path) -> list[str]:
    if not log.exists():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
