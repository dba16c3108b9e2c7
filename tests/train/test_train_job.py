"""The job of ``mpembed train``, called as a user calls it: one model that is kept, and its ends."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")

import command_line
import ranks
import train_jobs
import train_programs

from mpembed.train import job, runner
from mpembed.train.data.clicks import DataError
from mpembed.train.data.options import DataOptions
from mpembed.train.data.sources import open_source
from mpembed.train.forward import Forward
from mpembed.train.interrupts import Interrupted, Interrupts
from mpembed.train.metrics import log_loss
from mpembed.train.saved_model import SavedModel
from mpembed.train.score import score
from mpembed.train.trial import Trial

pytestmark = pytest.mark.torch
FEW = ["--rows", "400", "--dim", "4", "--threads", "1"]
ONE = [*FEW, "--setting", "int4:0.05"]


call = partial(command_line.call, "train")
refused = partial(command_line.refused, "train")


def rows_of(out: str) -> list[str]:
    """Return the cells of a printed table but those of times."""
    return [" ".join(line.split()[:-2]) for line in out.splitlines() if "int4" in line]


def test_a_model_is_saved_and_resumed_without_its_options(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    code, out, err = call(*ONE, "--save", model)
    assert code == 0, err
    code, again, err = call("--resume", model)
    assert code == 0, err
    assert rows_of(again) == rows_of(out)
    assert f"--save {model}: holds a saved model, which stays" in refused(*ONE, "--save", model)
    code, more, err = call("--resume", model, "--epochs", "2", "--save", str(tmp_path / "two"))
    assert code == 0, err
    code, whole, err = call(*ONE, "--epochs", "2")
    assert rows_of(more) == rows_of(whole) != rows_of(out)
    assert "--dim 8 is given, but the saved run has --dim 4;" in refused(
        "--resume", model, "--dim", "8"
    )
    assert "--seed 1 is given, but the saved run has --seed 0;" in refused(
        "--resume", model, "--seed", "1"
    )
    assert "saved with 1 thread(s), here 2" in call("--resume", model, "--threads", "2")[2]
    assert call("--resume", model, "--threads", "1")[0] == 0
    # A default that is given, too.
    assert call("--resume", model, "--policy", "lfu")[0] == 0
    assert "--dim 16 is given, but the saved run has --dim 4;" in refused(
        "--resume", model, "--dim", "16"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*FEW], "--save keeps one model, but 6 setting(s) and 1 seed(s) are trained"),
        ([*ONE, "--seeds", "2"], "--save keeps one model, but 1 setting(s) and 2 seed(s)"),
        ([*ONE, "--save-every", "0"], "--save-every is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_saved_is_refused(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refused(*arguments, "--save", str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def test_options_that_need_others_are_refused(tmp_path: Path) -> None:
    assert "--save-every needs --save" in refused(*ONE, "--save-every", "3")
    assert "no model is saved there" in refused("--resume", str(tmp_path))
    (tmp_path / "file").touch()
    assert "is not a folder" in refused(*ONE, "--save", str(tmp_path / "file"))
    assert "has other files, such as file" in refused(*ONE, "--save", str(tmp_path))
    assert "--logdir" in refused(*ONE, "--logdir", str(tmp_path / "file"))


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config, report = tmp_path / "train.toml", tmp_path / "r.json"
    config.write_text(
        f"rows = 400\ndim = 8\nthreads = 1\nsetting = 'int4:0.05'\njson = '{report}'\n"
    )
    code, _, err = call("--config", str(config), "--dim", "4")
    assert code == 0, err
    found = json.loads(report.read_text())["config"]
    assert (found["rows"], found["dim"], found["settings"][0]["name"]) == (400, 4, "int4 + 5 %")
    config.write_text("dmi = 3")
    assert "did you mean 'dim'?" in refused("--config", str(config))
    # What a file gives counts as given.
    call(*ONE, "--save", str(tmp_path / "model"))
    config.write_text("dim = 8")
    assert "--dim 8 is given" in refused(
        "--resume", str(tmp_path / "model"), "--config", str(config)
    )


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    code, _, err = call(
        *FEW, "--setting", "fp32", "--setting", "int4:0.05", "--logdir", str(tmp_path)
    )
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32-seed0", "int4+5-seed0"]
    found = accumulators.EventAccumulator(str(tmp_path / "int4+5-seed0"))
    found.Reload()
    assert {"train/log_loss", "cache/hit_rate", "test/auc"} <= set(found.Tags()["scalars"])
    assert found.Scalars("train/log_loss")[-1].step == 400 * 6 // 7


def test_tensorboard_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    text = refused(*ONE, "--logdir", str(tmp_path / "logs"))
    assert "--logdir needs tensorboard; install tensorboard" in text
    assert list(tmp_path.iterdir()) == []


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int) -> None:
    """Let the signal come in the middle of a step."""
    act = partial(os.kill, os.getpid(), number)
    monkeypatch.setattr(Trial, "_update_tables", train_programs.acting(steps, act))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_the_table_so_far(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, plot = tmp_path / "r.json", tmp_path / "r.png"
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    interrupt_after(monkeypatch, 4, number)
    settings = ["--setting", "fp32", "--setting", "int4:0.05", "--batch-size", "10"]
    code, out, err = call(*FEW, *settings, "--json", str(report), "--plot", str(plot))
    assert code == 128 + number
    assert err.splitlines()[-1] == (
        "mpembed: stopped after 0 of 342 clicks of int4 + 5 %, seed 0; what was not measured by "
        "then is -"
    )
    fp32, int4 = json.loads(report.read_text())["runs"]
    assert (fp32["curve"][-1]["rows"], int4["curve"]) == (40, [])
    assert (fp32["test"], fp32["online"]["log_loss"], int4["step_ms"]) == (None, None, None)
    cells = next(line.split() for line in out.splitlines() if line.strip().startswith("fp32"))
    assert cells[:5] == ["fp32", "-", "-", "-", "-"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert handlers == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


def test_a_signal_before_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "open_dataset", interrupted)
    code, out, err = call(*ONE, "--json", str(tmp_path / "r.json"))
    assert (code, out) == (143, "")
    assert err == "mpembed: SIGTERM before training: nothing to report\n"
    assert list(tmp_path.iterdir()) == []


def test_signals_that_come_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    with Interrupts() as interrupts:
        interrupts.raises, interrupts.quiet = False, True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked()
        assert (interrupts.name, interrupts.status) == ("SIGINT", 130)
        monkeypatch.setattr("mpembed.train.interrupts.monotonic", lambda: float("inf"))
        monkeypatch.setattr(
            "mpembed.train.interrupts.os.kill", lambda _, number: ended.append(number)
        )
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with Interrupts(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)


def on_ranks(folder: Path, *by_rank: list[str]) -> list[tuple[int, str, str]]:
    calls = [["train", *arguments] for arguments in by_rank]
    return ranks.succeed(ranks.run(train_programs.command, 2, folder, calls, timeout=120))


def test_the_first_rank_alone_reports(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    (code, out, err), other = on_ranks(tmp_path, [*ONE, "--json", str(report)])
    assert (code, other) == (0, (0, "", "")), err
    assert "int4 + 5 %" in out
    assert json.loads(report.read_text())["ranks"] == 2


def test_all_ranks_fail_together(tmp_path: Path) -> None:
    """By one message, whichever rank it comes from; none waits for another."""
    missing = str(tmp_path / "no.txt")
    diverging = ["--setting", "fp32", "--optimizer", "sgd", "--lr", "1e30"]
    for by_rank, status, message in (
        ([[*FEW, "--save", str(tmp_path / "model")]], 2, "--save keeps one model"),
        ([ONE, [*ONE[:-1], "fp32"]], 2, "rank 1 has settings "),
        ([ONE, [*ONE, "--data", missing]], 2, "rank 1 has data "),
        ([[*ONE, "--data", missing]], 2, f"mpembed: {missing}: no such file"),
        (
            [[*FEW, *diverging]],
            1,
            "training diverged",
        ),
    ):
        first, second = on_ranks(tmp_path, *by_rank)
        assert (first[0], second) == (status, (status, "", ""))
        assert message in first[2].splitlines()[-1]


@pytest.mark.exhaustive
def test_ranks_save_and_go_on(tmp_path: Path) -> None:
    """Bit for bit, of the same number of ranks; another number is refused, and scores are equal."""
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    calls = [*ONE, "--batch-size", "50", "--epochs", "2"]
    (code, out, err), _ = on_ranks(tmp_path, [*calls, "--save", whole])
    assert code == 0, err
    short = [*calls[:-1], "1", "--save", part, "--save-every", "2"]
    assert on_ranks(tmp_path, short)[0][0] == 0
    (code, again, err), other = on_ranks(tmp_path, ["--resume", part, "--epochs", "2"])
    assert (code, other) == (0, (0, "", "")), err
    assert rows_of(again) == rows_of(out)
    first, second = SavedModel(whole), SavedModel(part)
    assert first.facts == second.facts
    assert first.facts.ranks == 2
    encoding = first.encoding()
    for rank in range(2):
        tables = [one.tables(encoding, rank).state_arrays() for one in (first, second)]
        train_jobs.assert_same(*tables)
    arrays = [one.arrays() for one in (first, second)]
    train_jobs.assert_same(
        *({k: v for k, v in one.items() if not k.endswith("seconds")} for one in arrays)
    )
    assert len(list(Path(part).iterdir())) == 5  # no leftovers
    assert "was trained by 2 process(es), here are 1; start as many" in refused("--resume", part)
    test = first.facts.scores["test"]
    assert test is not None
    found = [score(Path(path), DataOptions(), 400) for path in (whole, part)]
    assert found[0] == found[1]
    rest = Forward(first.arrays(), first.all_tables(encoding), encoding.columns)
    source = open_source(DataOptions(), 400, encoding.columns)
    (block,) = encoding.blocks(source, 400)
    last = block[slice(400 * 6 // 7 + 29, None)]
    assert log_loss(last.labels, rest(last)) == pytest.approx(test["log_loss"], abs=1e-6)


def test_a_save_that_one_rank_cannot_make_is_none(tmp_path: Path) -> None:
    """The run goes on, and the next save is whole."""
    model = tmp_path / "model"
    arguments = ["train", *ONE, "--batch-size", "50", "--save", str(model), "--save-every", "4"]
    called = ranks.run(train_programs.one_cannot_save, 2, tmp_path, arguments, timeout=120)
    (code, _, err), other = ranks.succeed(called)
    assert (code, other) == (0, (0, "", ""))
    (line,) = [one for one in err.splitlines() if "cannot be written" in one]
    assert line.startswith(f"mpembed: --save {model}: cannot be written: rank 1: ")
    assert "No space left on device" in line
    assert line.endswith("; going on")
    assert SavedModel(model).facts.steps == 7
    assert score(model, DataOptions(), 20).rows == 20


def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    found = ranks.run(train_programs.one_refuses, 3, tmp_path)
    assert [one.kind for one in found] == [DataError.__name__] * 3
    assert [one.message for one in found] == ["rank 1: no", "no", "rank 1: no"]


def test_the_death_of_a_rank_ends_the_others(tmp_path: Path) -> None:
    arguments = ["train", *ONE, "--batch-size", "20"]
    left, dead = ranks.run(train_programs.one_dies, 2, tmp_path, arguments, timeout=120)
    assert dead is None
    code, out, err = left
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("mpembed: rank 0: another rank has ended or does not")
