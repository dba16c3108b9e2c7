"""Runs that are killed or interrupted at any time go on as if nothing had happened."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

import train_jobs

pytestmark = pytest.mark.torch
OUTPUTS = ["--json", "r.json", "--save", "model", "--save-every", "1"]
#: The first before training, the others in each of twenty parts of it; one in every test run.
POINTS = [
    point if point == 9 else pytest.param(point, marks=pytest.mark.exhaustive)
    for point in range(20)
]


class Whole(NamedTuple):
    """A run without a break."""

    results: dict[str, Any]
    model: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    arguments = [*train_jobs.ARGUMENTS, *OUTPUTS]
    seconds = train_jobs.timed(folder, arguments)
    return Whole(train_jobs.results(folder / "r.json"), train_jobs.model(folder / "model"), seconds)


def signalled(folder: Path, whole: Whole, point: int, number: signal.Signals) -> int:
    """Send a new run a signal at a random time of a part; return its exit status."""
    run = train_jobs.start(folder, [*train_jobs.ARGUMENTS, *OUTPUTS])
    if point:
        train_jobs.begun(folder, run)
    after = whole.seconds * (point + random.Random(point).random()) / 20
    return train_jobs.signalled(run, after, number)


def go_on(folder: Path, whole: Whole) -> None:
    """Resume, or start anew where nothing was saved, and compare with the run without a break."""
    saved = (folder / "model" / "model.json").exists()
    begin = ["--resume", "model"] if saved else [*train_jobs.ARGUMENTS, "--save", "model"]
    assert train_jobs.finish(train_jobs.start(folder, [*begin, "--json", "r.json"])) == 0, (
        folder / "err"
    ).read_text()
    assert train_jobs.results(folder / "r.json") == whole.results
    train_jobs.assert_same(train_jobs.model(folder / "model"), whole.model)
    kinds = sorted(path.name.split("-")[0] for path in (folder / "model").iterdir())
    assert kinds == ["dense", "encoding", "model.json", "tables"], "leftovers"


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on(point: int, whole: Whole, tmp_path: Path) -> None:
    status = signalled(tmp_path, whole, point, signal.SIGKILL)
    assert status in (-signal.SIGKILL, 0)
    go_on(tmp_path, whole)


@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_run_leaves_its_results(point: int, whole: Whole, tmp_path: Path) -> None:
    number = (signal.SIGINT, signal.SIGTERM)[point % 2]
    status = signalled(tmp_path, whole, point, number)
    told = (tmp_path / "err").read_text() if (tmp_path / "err").exists() else ""
    if not (tmp_path / "model").exists():  # before training, or before the command line was there
        assert status in (-number, 128 + number)
        assert told == "" or "before training" in told
        assert not (tmp_path / "r.json").exists()
        return
    assert status in (128 + number, 0), told
    assert "int4 + 5 %" in (tmp_path / "out").read_text()
    found = train_jobs.results(tmp_path / "r.json")
    assert found["complete"] or "stopped after" in told
    assert train_jobs.model(tmp_path / "model")
    go_on(tmp_path, whole)
