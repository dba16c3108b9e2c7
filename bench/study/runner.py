"""Runs what the results file does not hold yet, in this process or in several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

from study import results
from study.model import Advance, Model
from study.settings import Setting, all_settings, changes, deciding

#: Module and class by name, in the order of the report. They are imported when they run.
MODELS = {
    "clicks": "Clicks",
    "sequence": "Sequence",
    "item2vec": "Item2vec",
    "factorisation": "Factorisation",
}


@dataclass(frozen=True)
class Job:
    """One run to do."""

    model: str
    path: Path | None
    quick: bool
    setting: Setting
    seed: int
    threads: int
    part: int  # of `model_settings`: earlier parts are run first


def make_model(name: str) -> Model:
    """Return the model of a name."""
    made: Model = getattr(import_module(f"study.{name}"), MODELS[name])()
    return made


@lru_cache(maxsize=8)
def load(name: str, path: Path | None, quick: bool) -> Any:
    """Return a model's data, which are kept."""
    return make_model(name).load(path, quick)


def model_settings(model: Model, few: bool, only_changes: bool = False) -> list[list[Setting]]:
    """Return the settings of a model that this build of mpembed knows, in parts."""
    if only_changes:
        chosen = [changes(model.several)]
    elif few:
        chosen = [deciding()]
    else:
        others = [kind for kind in model.rates if kind != model.optimizer]
        chosen = all_settings(model.other_dim, others, model.equal_bytes, model.several)
    return [[setting for setting in part if setting.available] for part in chosen]


def plan(
    name: str,
    path: Path | None,
    few: bool,
    seeds: int,
    threads: int,
    done: set[str],
    only: list[str] | None = None,
    only_changes: bool = False,
) -> tuple[list[Job], int]:
    """Return the jobs of a model that are not done, and how many are.

    `only` are the names of the settings to run, all if it is empty. With `only_changes` the
    settings are those of the page about changes.
    """
    model = make_model(name)
    data = model.describe(load(name, path, few))
    jobs, finished = [], 0
    for part, settings in enumerate(model_settings(model, few, only_changes)):
        chosen = [setting for setting in settings if not only or setting.name in only]
        for seed, setting in product(range(seeds), chosen):
            if results.key(name, data, setting, seed) in done:
                finished += 1
            else:
                jobs.append(Job(name, path, few, setting, seed, threads, part))
    return jobs, finished


def run(job: Job, advance: Advance = lambda share: None) -> results.Run:
    """Do one run.

    Returns
    -------
    dict
        A line of the results file. A run that diverges has an ``error`` instead of metrics.
    """
    set_threads(job.threads)
    model = make_model(job.model)
    data = load(job.model, job.path, job.quick)
    line: results.Run = {
        "model": job.model,
        "data": model.describe(data),
        "setting": job.setting.as_dict(),
        "name": job.setting.name,
        "seed": job.seed,
    }
    start = perf_counter()
    try:
        found = model.run(data, job.setting, job.seed, advance).as_dict()
    except ArithmeticError as error:
        found = {"error": str(error)}
    return {**line, **found, "seconds": round(perf_counter() - start, 2)}


def set_threads(threads: int) -> None:
    """Set the threads of PyTorch and of mpembed."""
    import torch

    import mpembed as mpe

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    mpe.set_num_threads(threads)


def run_all(
    jobs: list[Job], processes: int, started: Callable[[Job], Advance]
) -> Iterator[tuple[Job, results.Run]]:
    """Do all jobs; yield each with its line when it is done.

    Parameters
    ----------
    jobs : list of Job
        What to do.
    processes : int
        1 runs in this process.
    started : callable
        Called with a job of this process when it starts; returns what is told its progress.
    """
    if processes == 1:
        for job in jobs:
            yield job, run(job, started(job))
        return
    # Threads of PyTorch do not survive a fork.
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
