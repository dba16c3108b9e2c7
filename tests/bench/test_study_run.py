"""``python -m bench.study``: a small run of every model, resumed, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import ROOT

pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
from study import cli, runner, synthetic
from study.settings import Setting
from typer.testing import CliRunner, Result

from mpembed.train.data.synthetic import SyntheticSource

pytestmark = pytest.mark.torch
TINY = [Setting(), Setting("int4", 0.05)]


def study(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the study small; return a file of ratings."""
    made = synthetic.ratings(3_000, 60, 40)
    assert made.rating is not None
    columns = np.column_stack([made.user, made.item, made.rating, made.time])
    path = tmp_path / "u.data"
    np.savetxt(path, columns, fmt="%d", delimiter="\t")
    monkeypatch.setattr(runner, "deciding", lambda: TINY)
    monkeypatch.setattr("study.clicks.SyntheticSource", SmallClicks)
    for model in ("sequence", "item2vec", "factorisation"):
        monkeypatch.setattr(f"study.{model}.EPOCHS", 1)
    return path


class SmallClicks(SyntheticSource):
    def __init__(self, rows: int) -> None:
        super().__init__(min(rows, 600))


def test_a_small_run_of_every_model_resumes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    data = [f"--data={m}={tiny}" for m in ("sequence", "item2vec", "factorisation")]
    done = study("--quick", "--seeds", 1, "--out", out, *data)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["model"], one["name"]) for one in lines] == [
        (model, setting.name) for model in runner.MODELS for setting in TINY
    ]
    for fp32, int4 in zip(lines[::2], lines[1::2], strict=True):
        assert fp32["metrics"].keys() == int4["metrics"].keys()
        assert fp32["bytes"]["row"] > int4["bytes"]["row"] + int4["bytes"]["cache"]
        assert fp32["hit_rate"] is None
        assert int4["hit_rate"] > 0
        # The same starting rows and order of the data.
        assert fp32["curve"][0] == pytest.approx(int4["curve"][0], rel=0.1)
    assert "| Click model, synthetic |" in (tmp_path / "study.md").read_text()
    assert "8/8 factorisation, u.data: int4 + 5 % stochastic, seed 0: log loss" in done.stderr
    text = out.read_text()
    one = study("--quick", "--seeds", 2, "--out", out, "--setting", "fp32", *data)
    assert "item2vec, u.data: 1 done, 1 to do" in one.stderr
    assert out.read_text().startswith(text)
    assert len(out.read_text().splitlines()) == 12


def test_the_changes_have_settings_and_a_page_of_their_own(tiny: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "changes.jsonl", ["fp32", "int4 + 5 % paired, batch x 4"]
    chosen = [f"--setting={name}" for name in names]
    data = f"--data=factorisation={tiny}"
    fixed = ["--changes", "--quick", "--models", "factorisation", "--seeds", 1, "--out", out, data]
    done = study(*fixed, *chosen)
    assert done.exit_code == 0, done.output
    single, larger = [json.loads(line) for line in out.read_text().splitlines()]
    assert (single["name"], larger["name"]) == tuple(names)
    assert single["steps"] == 4 * larger["steps"] + 1  # a short last batch is left out
    assert "| Matrix factorisation, u |" in (tmp_path / "study_changes.md").read_text()
    assert not (tmp_path / "study.md").exists()
    refused = study(*fixed, "--setting", "int6 paired")
    assert "no 'int6 paired' here; there are fp32; fp32, rate x 0.5" in refused.stderr


def test_the_same_run_gives_the_same_numbers(tiny: Path) -> None:
    job = runner.Job("factorisation", tiny, True, TINY[1], 0, 1, 0)
    first, second = runner.run(job), runner.run(job)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.parametrize("model", ["sequence", "item2vec"])
def test_an_update_a_lookup_starts_alike_and_trains_otherwise(model: str, tiny: Path) -> None:
    step, lookup = (
        runner.run(runner.Job(model, tiny, True, Setting(per_lookup=per_lookup), 0, 1, 0))
        for per_lookup in (False, True)
    )
    assert step["curve"][0] == pytest.approx(lookup["curve"][0], rel=1e-6)
    assert step["curve"][1:] != lookup["curve"][1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "clicks,dlrm"], "no model 'dlrm'; known are clicks, sequence"),
        (
            ["--setting", "int9"],
            "no 'int9' here; there are fp32; int8 + 5 % stochastic; int4 + 5 %",
        ),
        (["--data", "u.data"], "--data 'u.data': expected MODEL=PATH"),
        (["--models", "sequence", "--data", "sequence=none"], "none: cannot be read: No such file"),
        (["--models", "clicks", "--data", "clicks=none"], "docs/train.md describes the format"),
        (["--report"], "holds no runs; leave out --report"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_way_out(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = study(*arguments, "--out", tmp_path / "results.jsonl")
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_are_named(tiny: Path, tmp_path: Path) -> None:
    data = f"--data=factorisation={tiny}"
    done = study("--models", "factorisation", "--quick", "--seeds", 1, data, "--out", tiny / "x")
    assert done.exit_code == 2
    assert "u.data" in done.stderr
    assert "choose others with --out and --docs" in done.stderr


def test_ratings_are_needed_for_factorisation(tmp_path: Path) -> None:
    path = tmp_path / "sessions.csv"
    path.write_text("session,item,time\n1,2,3\n")
    done = study("--models", "factorisation", "--data", f"factorisation={path}")
    assert done.exit_code == 2
    assert "has no ratings" in done.stderr
    assert "leave factorisation out of --models" in done.stderr


def test_it_runs_as_a_module_of_the_project() -> None:
    command = [sys.executable, "-m", "bench.study", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
