"""Runs of ``mpembed train`` as processes that can be killed, started from one with PyTorch."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ranks

#: Ten steps: two epochs of five.
ARGUMENTS = ["--rows", "747", "--dim", "4", "--threads", "1", "--epochs", "2"]
ARGUMENTS += ["--setting", "int4:0.05"]
_TIMES = {"step_ms", "embedding_ms", "rows_per_second"}


def start(folder: Path, arguments: Sequence[str]) -> Any:
    """Start a run in a folder, where it writes ``out`` and ``err``; return its process."""
    process = ranks.context().Process(
        target=_run, args=(sys.path, folder, list(arguments)), daemon=True
    )
    process.start()
    return process


def _run(path: list[str], folder: Path, arguments: list[str]) -> None:
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & may ignore it
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    sys.stdout, sys.stderr = (open(one, "w", closefd=False) for one in (1, 2))  # noqa: SIM115
    from mpembed.cli import app

    status = 0
    try:
        app(["train", *arguments])
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def finish(process: Any, seconds: float = 60.0) -> int:
    """Wait for a run to end; return its exit status, or the negative number of a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    return int(process.exitcode)


def begun(folder: Path, process: Any) -> None:
    """Wait until a run trains: its folder ``model`` is there."""
    while not (folder / "model").exists() and process.exitcode is None:
        process.join(0.002)


def signalled(process: Any, after: float, number: signal.Signals) -> int:
    """Send a run a signal after some seconds; return its exit status."""
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid, number)
    return finish(process)


def timed(folder: Path, arguments: Sequence[str]) -> float:
    """Run to the end; return how many seconds it has trained, saved and reported."""
    process = start(folder, arguments)
    begun(folder, process)
    begin = time.monotonic()
    assert finish(process) == 0, (folder / "err").read_text()
    return time.monotonic() - begin


def results(path: Path) -> dict[str, Any]:
    """Return what a run's JSON says, without times."""
    return without_times(json.loads(path.read_text()))


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """Return a run's results without times, which are removed."""
    for one in (*found["runs"], *found["summary"]):
        for name in _TIMES & set(one):
            del one[name]
    return found


def model(folder: Path) -> dict[str, Any]:
    """Return all that a saved model has, without times: rows, weights, states, facts."""
    import mpembed as mpe
    from mpembed.train.saved_model import SavedModel

    saved = SavedModel(folder)
    tables = saved.tables(saved.encoding())
    assert isinstance(tables, mpe.EmbeddingBagCollection)
    arrays = {k: v for k, v in saved.arrays().items() if not k.endswith("seconds")}
    arrays |= {k: np.array(v) for k, v in tables.state_arrays().items()}
    return {"facts": saved.facts, **arrays}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Fail where two models differ."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        same = np.array_equal(found[name], value) if name != "facts" else found[name] == value
        assert same, name
