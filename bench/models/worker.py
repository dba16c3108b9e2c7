"""A case in a process of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
import warnings
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

from models.cases import Library, Result, Sizes, Training

#: Module of each library.
LIBRARIES = {
    "recbole": "models.recbole_models",
    "torchfm": "models.torchfm_models",
    "deepctr": "models.deepctr_models",
}
_LINES = 12  # of a traceback that are kept


def library(name: str) -> Library:
    """Return the module of a library."""
    module: Library = import_module(LIBRARIES[name])
    return module


def run_all(trainings: list[Training], sizes: Sizes, answers: Connection, log: str) -> None:
    """Run trainings one after another and send the result of each."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    import torch

    import mpembed as mpe

    torch.set_num_threads(1)
    mpe.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for training in trainings:
            answers.send(("start", training.key))
            answers.send(("done", run(training, sizes)))
        os.chdir(Path(log).parent)
    answers.close()


def run(training: Training, sizes: Sizes) -> Result:
    """Run a training; a failure is a result too."""
    stage = ["import"]
    start = perf_counter()
    try:
        found = library(training.case.library).train(training, sizes, stage.append)
        found = {"ok": True, **found}
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        found = {
            "ok": False,
            "stage": stage[-1],
            "error": f"{type(error).__name__}: {error}",
            "trace": lines[-_LINES:],
        }
    with contextlib.suppress(AttributeError):
        sys.stdout.flush()
    return {**describe(training), **found, "seconds": round(perf_counter() - start, 2)}


def describe(training: Training) -> Result:
    """Return what a line of the results file says of a training."""
    case = training.case
    return {
        "key": training.key,
        "library": case.library,
        "case": case.name,
        "model": case.model,
        "kind": training.kind,
        "learner": training.learner,
        "seed": training.seed,
    }
