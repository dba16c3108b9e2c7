"""What a run leaves behind where one of its outputs cannot be written: all the others."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")

import train_programs

from mpembed import cli
from mpembed.train import board, outputs
from mpembed.train.data.clicks import DataError
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.encoding import Block
from mpembed.train.interrupts import Interrupts
from mpembed.train.saved_model import Position, SavedModel
from mpembed.train.trial import Trial

pytestmark = pytest.mark.torch
ONE = ["train", "--rows", "400", "--dim", "4", "--threads", "1", "--setting", "int4:0.05"]


def call(*arguments: str) -> int:
    """Run a command in this process, with its own streams; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.app([*ONE, *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def full() -> Any:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


def broken_pipe() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (full, "No space left on device"),
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
    stream = None if closed else full()
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


def on_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Let something happen in the middle of a step."""
    monkeypatch.setattr(Trial, "_update_tables", train_programs.acting(step, act))


def clicks(path: Path) -> Path:
    path.write_text("label,a\n" + "".join(f"{row % 2},{row % 7}\n" for row in range(100)))
    return path


def test_data_that_cannot_be_read_on_leave_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Dataset.blocks

    def blocks(self: Dataset, *arguments: Any) -> Iterator[Block]:
        yield from itertools.islice(real(self, *arguments), 2)
        raise DataError("clicks.csv: line 7: ends too early")

    monkeypatch.setattr(Dataset, "blocks", blocks)
    report = tmp_path / "r.json"
    code = call("--batch-size", "2", "--save", str(tmp_path / "model"), "--json", str(report))
    out, err = capsys.readouterr()
    assert code == 1
    assert "int4 + 5 %" in out
    assert err.splitlines()[-1] == "mpembed: clicks.csv: line 7: ends too early"
    found = json.loads(report.read_text())
    assert (found["complete"], found["error"]) == (False, "clicks.csv: line 7: ends too early")
    assert SavedModel(tmp_path / "model").facts.position == Position(0, 128)


def test_data_that_change_meanwhile_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = clicks(tmp_path / "clicks.csv"), tmp_path / "model"
    columns = ["--data", str(data), "--categorical", "a", "--batch-size", "20", "--epochs", "3"]

    def swap() -> None:
        data.write_text(data.read_text().replace("0,", "1,"))

    on_step(monkeypatch, 2, swap)
    assert call(*columns, "--save", str(model)) == 1
    assert f"{data}: has changed since training started" in capsys.readouterr().err
    assert SavedModel(model).facts.position == Position(0, 85)


def test_outputs_in_the_folder_of_a_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, new = tmp_path / "model", tmp_path / "new"
    assert call("--save", str(model)) == 0
    before = (model / "model.json").read_bytes()
    alias = tmp_path / "alias"
    alias.symlink_to(model)
    for option, path in (
        ("--json", model / "model.json"),
        ("--plot", alias / "p.png"),
        ("--logdir", model),
        ("--logdir", model / "logs"),
    ):
        capsys.readouterr()
        assert call("--save", str(new), option, str(path)) == 2
        assert "is the folder of a model; name a place outside of it" in capsys.readouterr().err
    new.mkdir()
    assert call("--save", str(new), "--json", str(new / "r.json")) == 2
    assert call("--save", str(new), "--logdir", str(new / "logs")) == 2
    data = clicks(tmp_path / "clicks.csv")
    out = str(model / "scores.csv")
    with pytest.raises(SystemExit, match="2"):
        cli.app(["score", str(model), "--data", str(data), "--out", out])
    assert list(new.iterdir()) == []
    assert (model / "model.json").read_bytes() == before


def test_options_of_the_data_may_be_repeated_as_they_were_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = clicks(tmp_path / "clicks.csv"), str(tmp_path / "model")
    text = data.read_text().replace("label,a", "label,a,b,c")
    head, *lines = text.splitlines()
    data.write_text("\n".join([head, *(f"{line},1,0.5" for line in lines)]) + "\n")
    same = ["--dense", "c", "--categorical", "a,b"]
    assert call("--data", str(data), *same, "--save", model) == 0

    def resume(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            cli.app(["train", "--resume", model, *arguments])
        return ended.value.code

    assert resume(*same) == 0
    assert resume("--dense", "c", "--categorical", "a", "--categorical", "b") == 0
    capsys.readouterr()
    assert resume("--categorical", "b,a") == 2
    assert (
        "--categorical b,a is given, but the saved run has --categorical a,b;"
        in capsys.readouterr().err
    )


def test_a_log_that_cannot_be_written_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    logs, model = str(tmp_path / "logs"), tmp_path / "model"
    assert call("--batch-size", "2", "--save", str(model), "--logdir", logs) == 1
    text = f"mpembed: --logdir {logs}: cannot be written: No space left on device"
    told = [line for line in capsys.readouterr().err.splitlines() if "--logdir" in line]
    assert told == [f"{text}; going on without it", text]
    assert SavedModel(model).facts.position == Position(1, 0)
    # A place where no file can be is refused.
    assert call("--logdir", "/proc/no/logs", "--save", str(tmp_path / "new")) == 2
    assert "--logdir /proc/no/logs: cannot be written: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_threads_of_tensorboard_print_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: seen.append(found.exc_type))
    board.quieten()
    hook = threading.excepthook
    board.quieten()
    assert threading.excepthook is hook

    class Writer(threading.Thread):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self._error = error

        def run(self) -> None:
            raise self._error

    Writer.__module__ = "tensorboard.summary"
    own = threading.Thread(target=lambda: Path("/proc/no").read_text())
    for thread in (Writer(OSError()), Writer(KeyError()), own):
        thread.start()
        thread.join()
    assert seen == [KeyError, FileNotFoundError]


def test_ctrl_c_while_packages_are_imported_prints_no_traceback() -> None:
    program = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "mpembed.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from mpembed.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_a_signal_that_cannot_be_answered_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Interrupts() as interrupts:
        interrupts.raises = False
        monkeypatch.setattr("mpembed.train.interrupts.os.write", write)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
        assert interrupts.status == 143
