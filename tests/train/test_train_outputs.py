"""What a run leaves behind where one of its outputs cannot be written: all the others."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")

from mpembed import cli
from mpembed.train import outputs
from mpembed.train.interrupts import Interrupts
from mpembed.train.saved_model import SavedModel

pytestmark = pytest.mark.torch
ONE = ["train", "--rows", "400", "--dim", "4", "--threads", "1", "--setting", "int4:0.05"]


def call(*arguments: str) -> int:
    """Run a command in this process, with its own streams; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.app([*ONE, *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def broken_pipe() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (lambda: Path("/dev/full").open("w"), "No space left on device"),
        (broken_pipe, "Broken pipe"),
        (lambda: None, None),
    ],
)
def test_a_table_that_cannot_be_printed_loses_no_model(
    stream: Any,
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, report = tmp_path / "model", tmp_path / "r.json"
    opened = stream()
    monkeypatch.setattr(sys, "stdout", opened)
    code = call("--save", str(model), "--json", str(report))
    if opened is not None:
        opened.close()  # as the interpreter does at its end: nothing may be left to fail
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert code == (0 if reason is None else 1)
    if reason is not None:
        assert err.splitlines()[-1] == f"mpembed: stdout: cannot be written: {reason}"
    assert SavedModel(model).facts.position.epoch == 1
    assert report.exists()


@pytest.mark.parametrize("closed", [False, True])
def test_lines_that_cannot_be_printed_lose_no_model(
    closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = None if closed else Path("/dev/full").open("w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    assert call("--save", str(tmp_path / "model")) == 0
    if stream is not None:
        stream.close()
    assert SavedModel(tmp_path / "model").facts.position.epoch == 1


def test_a_plot_that_fails_loses_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(outputs, "_plot", fail)
    with pytest.raises(RuntimeError, match="no font"):
        cli.app([*ONE, "--save", str(tmp_path / "model"), "--plot", str(tmp_path / "p.png")])
    assert SavedModel(tmp_path / "model").facts.position.epoch == 1


def test_a_signal_that_cannot_be_answered_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Interrupts() as interrupts:
        interrupts.raises = False
        monkeypatch.setattr("mpembed.train.interrupts.os.write", write)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
        assert interrupts.status == 143
