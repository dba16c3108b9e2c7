"""The command line, called as a user calls it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from folders import ROOT

pytest.importorskip("typer")
pytest.importorskip("torch")

import command_line
from command_line import call

import mpembed
from mpembed import cli, registry
from mpembed.train import PACKAGES
from mpembed.train.settings import DEFAULT_SETTINGS, Setting, TrainOptions

pytestmark = pytest.mark.torch
refused = partial(command_line.refused, "train")
RATES = {"adam": 0.001, "rowwise_adam": 0.001, "lamb": 0.001}
FEW = ["--rows", "1500", "--dim", "4", "--threads", "1"]


def test_info() -> None:
    code, out, _ = call("info")
    assert code == 0
    assert mpembed.__version__ in out
    for key in mpembed.info():
        assert key in out


def without_typer(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command line where only what a plain installation brings can be imported."""
    code = (
        "import runpy, sys\n"
        "for name in ('typer', 'click', 'rich', 'torch', 'pyarrow', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_module('mpembed', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_info_needs_no_extra(tmp_path: Path) -> None:
    done = without_typer(tmp_path, "info")
    assert (done.returncode, done.stderr) == (0, "")
    # Here the kernels for CUDA may be emulated ones, which another process does not see, and a
    # training run before this test may have set the number of threads.
    own = ("backends", "devices", "threads")
    told, here = (
        [line.split() for line in text.splitlines() if not line.startswith(own)]
        for text in (done.stdout, call("info")[1])
    )
    assert told == here


def test_the_rest_of_the_command_line_says_what_it_needs(tmp_path: Path) -> None:
    for arguments in ((), ("train",), ("info", "--help")):
        done = without_typer(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "mpembed: the command line needs typer; install mpembed[train]\n"


def test_train_prints_a_table_and_writes_json_and_plot(tmp_path: Path) -> None:
    report, plot = tmp_path / "r.json", tmp_path / "r.png"
    settings = ["--setting", "fp32", "--setting", "int4:0.05", "--seeds", "3"]
    code, out, _ = call("train", *FEW, *settings, "--json", str(report), "--plot", str(plot))
    assert code == 0
    result = json.loads(report.read_text())
    assert [row["setting"] for row in result["summary"]] == ["fp32", "int4 + 5 %"]
    for row in result["summary"]:
        (line,) = (text for text in out.splitlines() if text.strip().startswith(row["setting"]))
        assert f"{row['log_loss']:.4f}" in line
        assert f"{row['ratio']:.2f}" in line
        assert f"{row['ratio_embeddings']:.2f}" in line
    assert "±" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert result["config"]["seeds"] == 3
    assert result["data"]["rows"] == 1500
    for row in result["summary"]:
        losses = [
            run["validation"]["log_loss"]
            for run in result["runs"]
            if run["setting"] == row["setting"]
        ]
        assert row["validation_log_loss"] == pytest.approx(sum(losses) / 3)


def test_the_help_of_score_has_what_it_uses() -> None:
    text = " ".join(call("score", "--help")[1].replace("│", " ").split())
    for option in ("data", "out", "rows", "header", "delimiter", "list-separator"):
        assert f"--{option}" in text
    for other in ("--categorical", "in order of time"):
        assert other not in text


STREAMS = """
import sys
from mpembed.cli import app
app(sys.argv[1:])
"""


def streams(folder: Path, *arguments: str, mode: str = "w") -> tuple[str, str]:
    """Return what a command writes to a file that is its standard output, and to its errors."""
    with (folder / "out").open(mode) as out:
        command = [sys.executable, "-c", STREAMS, *arguments]
        done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "out").read_text(), done.stderr


def test_json_and_scores_on_standard_output_are_alone_there(tmp_path: Path) -> None:
    one = ["train", "--rows", "400", "--dim", "4", "--threads", "1", "--setting", "int4:0.05"]
    (tmp_path / "out").write_text("before\n")
    out, err = streams(tmp_path, *one, "--save", "m", "--json", "/dev/stdout", mode="a")
    assert out.startswith("before\n")
    assert json.loads(out.removeprefix("before\n"))["complete"]
    assert "accuracy" in err
    out, err = streams(tmp_path, "score", "m", "--rows", "400", "--out", "-")
    header, *scores = out.splitlines()
    assert (header, len(scores)) == ("score", 400)
    assert all(0 < float(one) < 1 for one in scores)
    assert "400 rows; log loss" in err


def test_the_table_stays_where_the_json_goes_elsewhere(tmp_path: Path) -> None:
    for path in (tmp_path / "r.json", "/dev/null"):
        code, out, _ = call("train", *FEW, "--setting", "fp32", "--json", str(path))
        assert code == 0
        assert "fp32" in out


def test_train_shows_its_six_settings_by_default() -> None:
    code, out, err = call("train", "--rows", "200", "--dim", "4", "--threads", "1")
    assert code == 0
    for name in ("fp32", "int8 + 5 %", "int4 + 5 %", "int4 + 1 %", "int2 + 5 %", "int4 nearest"):
        assert name in out
        assert f"mpembed: {name} is trained: training loss " in err
    assert err.startswith("mpembed: 6 setting(s) x 171 clicks: fp32, ")
    assert "rows/s" in err
    assert all(line.startswith("mpembed: ") for line in err.splitlines())


def test_train_on_a_file(tmp_path: Path) -> None:
    lines = []
    for row in range(60):
        cells = [str(row % 2), *[str(row + i) for i in range(13)]]
        lines.append("\t".join(cells + [f"{row % 7 + i:08x}" for i in range(26)]))
    path = tmp_path / "clicks.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    code, out, _ = call("train", "--data", str(path), "--dim", "2", "--setting", "int2:0.5")
    assert code == 0
    assert "clicks.txt.gz: 60 clicks" in out
    path.write_bytes(gzip.compress("\n".join([*lines[:30], "1\t2", *lines[30:]]).encode()))
    assert refused("--data", str(path)).startswith(f"mpembed: {path}: line 31: 2 columns")


def test_bad_data_is_one_line(tmp_path: Path) -> None:
    assert "absent.txt: no such file" in refused("--data", str(tmp_path / "absent.txt"))
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"0\t" * 1000)[:20])
    assert "cut.gz: line 1: the gzip data end too early" in refused("--data", str(cut))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--setting", "int7"], "no precision 'int7'"),
        (["--setting", "fp32", "--setting", "fp32"], "given twice"),
        (["--dim", "0"], "--dim is 0"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--optimizer", "adamax"], "--optimizer 'adamax'"),
        (["--policy", "fifo"], "--policy 'fifo'"),
        (["--rows", "2"], "2 rows are too few"),
        (["--threads", "5000"], "--threads is 5000"),
        (["--seed", "18446744073709551616"], "--seed is 18446744073709551616"),
        (["--lr", "1e39"], "--lr is 1e+39"),
        (["--dim", "1048577"], "--dim is 1048577"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_the_learning_rate_is_the_optimizers_own() -> None:
    def rate(name: str, lr: float | None = None) -> float:
        return TrainOptions((Setting("fp32"),), optimizer=name, lr=lr).table_lr

    assert {name: rate(name) for name in registry.OPTIMIZERS} == {
        name: RATES.get(name, 0.1) for name in registry.OPTIMIZERS
    }
    assert rate("adam", 0.5) == 0.5
    assert TrainOptions((Setting("fp32"),), optimizer="adam").lr == 0.001  # what --json tells


@pytest.mark.parametrize("name", ["rowwise_adam", "rowwise-adam"])
def test_an_optimizers_name_may_have_underscores(name: str, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    arguments = ["--optimizer", name, "--setting", "fp32", "--json", str(report)]
    code, _, _ = call("train", "--rows", "200", "--dim", "4", "--threads", "1", *arguments)
    assert code == 0
    config = json.loads(report.read_text())["config"]
    assert (config["optimizer"], config["lr"]) == ("rowwise-adam", 0.001)


def test_a_word_for_a_number_is_refused_by_the_parser() -> None:
    code, _, err = call("train", "--dim", "big")
    assert code == 2
    assert "--dim" in err


def test_training_that_diverges_is_one_line() -> None:
    code, out, err = call("train", *FEW, "--optimizer", "sgd", "--lr", "1e30", "--setting", "fp32")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("mpembed: fp32, seed 0, step ")
    assert "training diverged" in err


def test_what_is_added_to_the_registry_can_be_chosen(tmp_path: Path) -> None:
    code = (
        "from mpembed import registry\n"
        "registry.FORMATS['int3'] = registry.OPTIMIZERS['new_rule'] = len(registry.FORMATS)\n"
        "registry.POLICIES['fifo'] = registry.ROUNDINGS['up'] = len(registry.POLICIES)\n"
        "from mpembed.train.settings import Setting, TrainOptions\n"
        "setting = Setting.parse('int3:0:up')\n"
        "assert TrainOptions((setting,), optimizer='new-rule', policy='fifo')\n"
        "assert setting.name == 'int3 up'\n"
        "from mpembed.cli import app\n"
        "app(['train', '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for name in ("int3", "new-rule", "fifo", "up"):
        assert re.search(rf"\bor {name}\b", " ".join(re.findall(r"[\w.-]+", done.stdout)))


def test_help_lists_every_registered_choice_and_every_default() -> None:
    code, out, _ = call("train", "--help")
    words = re.findall(r"[^\s│()]+", out)
    assert code == 0
    for name in (*registry.FORMATS, *registry.OPTIMIZERS, *registry.POLICIES, *registry.ROUNDINGS):
        assert {name.replace("_", "-"), name} & {word.rstrip(".,;") for word in words}
    for setting in DEFAULT_SETTINGS:
        assert setting in {word.rstrip("]") for word in words}
    text = " ".join(words)
    for field in fields(TrainOptions):
        if field.name not in ("settings", "data") and field.default is not None:
            option = f"--{field.name.replace('_', '-')}"
            shown = re.search(rf"{option} .*?\[default: ([^\]]*)\]", text)
            assert shown is not None
            assert shown[1] == str(field.default)


def test_the_manual_names_options_that_exist() -> None:
    out = "".join(call(command, "--help")[1] for command in ("train", "score"))
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert {"--setting", "--data", "--json", "--threads"} <= named
    assert named - {"--help"} <= set(re.findall(r"--[a-z-]+", out))


def test_the_packages_that_are_looked_for_are_those_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = [re.split(r"[<>=]", one)[0] for one in project["optional-dependencies"]["train"]]
    assert sorted(PACKAGES) == sorted(extra)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_outputs_that_cannot_be_written_are_refused_before_training(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is a directory" in refused(option, str(tmp_path))
    assert "there is no directory" in refused(option, str(tmp_path / "no" / "r.png"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written" in refused(option, str(tmp_path / "r.png"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["the name", "a path", "a symbolic link", "a hard link"])
def test_an_output_may_not_be_the_input_or_the_other_output(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "clicks.png"
    data.write_text("1\n")
    same = tmp_path / "same.png"
    if kind == "the name":
        same = data
    elif kind == "a path":
        same = tmp_path / ".." / tmp_path.name / data.name
    elif kind == "a symbolic link":
        same.symlink_to(data)
    else:
        same.hardlink_to(data)
    for option in ("--json", "--plot"):
        assert f"{option} {same}: is the same file as --data {data}" in refused(
            "--data", str(data), option, str(same)
        )
    assert "is the same file as --json" in refused("--json", str(data), "--plot", str(same))
    assert data.read_text() == "1\n"


def test_outputs_that_do_not_exist_yet_must_differ_too(tmp_path: Path) -> None:
    report, link = tmp_path / "r.png", tmp_path / "link.png"
    link.symlink_to(report)
    for plot in (report, link):
        assert "is the same file as --json" in refused("--json", str(report), "--plot", str(plot))
    assert not report.exists()


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    assert "cannot be written: File name too long" in refused("--json", str(tmp_path / ("x" * 300)))


def test_results_replace_a_link_and_not_the_file_it_leads_to(tmp_path: Path) -> None:
    """Another user may have planted it in a folder that both share."""
    precious, report = tmp_path / "precious", tmp_path / "r.json"
    precious.write_text("kept")
    report.symlink_to(precious)
    code, _, err = call("train", *FEW, "--setting", "fp32", "--json", str(report))
    assert code == 0, err
    assert precious.read_text() == "kept"
    assert json.loads(report.read_text())["runs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "r.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_the_rest_is_given(tmp_path: Path) -> None:
    plot = tmp_path / "r.png"
    arguments = ["--setting", "fp32", "--json", "/dev/full", "--plot", str(plot)]
    code, out, err = call("train", *FEW, *arguments)
    assert code == 1
    assert "fp32" in out
    assert "1,500 clicks" in out
    assert err.splitlines()[-1] == (
        "mpembed: --json /dev/full: cannot be written: No space left on device"
    )
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mpembed.train.runner.run", refuse)
    code, out, err = call("train", *FEW)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("mpembed: out of memory")


def test_plot_must_be_of_a_known_format(tmp_path: Path) -> None:
    assert "must end in .png" in refused("--plot", str(tmp_path / "r.txt"))


def test_train_names_the_packages_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "pyarrow" else True)
    assert refused() == "mpembed: train needs pyarrow; install mpembed[train]"


def test_importing_mpembed_imports_none_of_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, mpembed; "
        "print([m for m in ('torch','pyarrow','rich','typer','matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
