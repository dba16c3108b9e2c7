"""``mpembed score``: what a saved model says of clicks, without PyTorch."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

import command_line
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch
from command_line import call

from mpembed import cli
from mpembed.train.data.options import DataOptions
from mpembed.train.data.sources import open_source
from mpembed.train.metrics import log_loss
from mpembed.train.model import Perceptrons
from mpembed.train.saved_model import SavedModel
from mpembed.train.score import score

pytestmark = pytest.mark.torch
refused = partial(command_line.refused, "score")
ROWS = 400


def train(folder: Path, *more: str) -> Path:
    arguments = ["--dim", "4", "--threads", "1", "--setting", "int4:0.05"]
    arguments += more or ("--rows", str(ROWS))
    code, _, err = call("train", *arguments, "--save", str(folder))
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("score") / "model")


def expected(path: Path) -> tuple[Any, Any]:
    """Return the labels and the log odds by PyTorch."""
    saved = SavedModel(path)
    encoding, arrays = saved.encoding(), saved.arrays()
    tables = saved.tables(encoding)
    net = Perceptrons(saved.facts.options.dim, 0, encoding.columns)
    (block,) = encoding.blocks(open_source(DataOptions(), ROWS, encoding.columns), ROWS)
    offsets = np.arange(block.ids.size + 1, dtype=np.int32)
    pooled: Any = tables.forward(block.ids.reshape(-1), offsets, training=False)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"net.{name}"]))
        logits = net(torch.from_numpy(block.dense), torch.from_numpy(np.array(pooled)))
    return block.labels, logits.numpy()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_are_those_of_pytorch(suffix: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / f"scores{suffix}"
    code, told, err = call("score", str(model), "--rows", str(ROWS), "--out", str(out))
    assert (code, err) == (0, "")
    labels, logits = expected(model)
    table = csv.read_csv(out) if suffix == ".csv" else pq.read_table(out)
    assert table.column_names == ["score"]
    np.testing.assert_allclose(table["score"].to_numpy(), 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert told.startswith(f"400 rows; log loss {log_loss(labels, logits):.4f}, AUC ")
    assert sorted(tmp_path.iterdir()) == [out]


def test_scores_of_the_test_part_are_those_of_the_report(model: Path) -> None:
    """The model's own scores, of the last rows of its data."""
    whole, part = score(model, DataOptions(), ROWS), SavedModel(model).facts.scores["test"]
    assert part is not None
    assert whole.rows == whole.labels == ROWS
    labels, logits = expected(model)
    train_rows = ROWS * 6 // 7
    test = slice(train_rows + (ROWS - train_rows) // 2, None)
    assert log_loss(labels[test], logits[test]) == pytest.approx(part["log_loss"], abs=1e-6)


def test_lists_of_values_are_scored_as_in_training(tmp_path: Path) -> None:
    """A table with a column of lists, some of them empty, and no numbers."""
    data, rows = tmp_path / "clicks.parquet", 210
    rng = np.random.default_rng(3)
    words = [[f"w{n}" for n in rng.integers(0, 9, row % 4)] for row in range(rows)]
    users = rng.integers(0, 20, rows)
    pq.write_table(pa.table({"label": users % 2, "words": words, "user": users}), data)
    path = train(
        tmp_path / "model", "--data", str(data), "--categorical", "words,user", "--batch-size", "20"
    )
    saved = SavedModel(path)
    part, train_rows = saved.facts.scores["test"], rows * 6 // 7
    assert part is not None
    test = slice(train_rows + (rows - train_rows) // 2, None)
    pq.write_table(pq.read_table(data)[test], data)
    found = score(path, DataOptions((str(data),)))
    assert found.log_loss == pytest.approx(part["log_loss"], abs=1e-6)
    assert found.auc == pytest.approx(part["auc"], abs=1e-6)


def test_a_signal_leaves_no_scores(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mpembed.train.forward.Forward.__call__", interrupted)
    code, out, err = call("score", str(model), "--rows", "50", "--out", str(tmp_path / "s.csv"))
    assert (code, out, err) == (130, "", "mpembed: SIGINT: nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def clicks(rows: int, *, label: bool) -> bytes:
    lines = []
    for row in range(rows):
        cells = [str(row % 2)] * label + [str(row + i) for i in range(13)]
        lines.append("\t".join(cells + [f"{row % 7 + i:08x}" for i in range(26)]))
    return "\n".join(lines).encode()


def test_clicks_without_labels_have_scores_and_no_metrics(model: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "new.txt.gz", tmp_path / "scores.csv"
    data.write_bytes(gzip.compress(clicks(30, label=False)))
    code, told, err = call("score", str(model), "--data", str(data), "--out", str(out))
    assert (code, told) == (0, "30 rows; no labels, so no metrics\n")
    assert err.startswith("mpembed: columns 'C1' (30 of 30), ")
    assert len(out.read_text().splitlines()) == 31
    unlabelled = out.read_text()
    data.write_bytes(gzip.compress(clicks(30, label=True)))
    code, told, _ = call("score", str(model), "--data", str(data), "--out", str(out))
    assert told.startswith("30 rows; log loss ")
    assert out.read_text() == unlabelled


@pytest.mark.parametrize("lists", [False, True])
def test_columns_that_are_spelt_otherwise_are_named(tmp_path: Path, lists: bool) -> None:
    data, rows = tmp_path / "a.parquet", 60
    flags = [None if i % 5 == 0 else i % 3 == 0 for i in range(rows)]
    ids = [[i % 7, 1] if lists else i % 7 for i in range(rows)]
    labels = [i % 2 for i in range(rows)]
    pq.write_table(pa.table({"label": labels, "id": ids, "flag": flags}), data)
    more = ("--data", str(data), "--categorical", "id,flag", "--batch-size", "10")
    path = train(tmp_path / "model", *more)
    code, _, err = call("score", str(path), "--data", str(data))
    assert (code, err) == (0, "")
    new = tmp_path / "new.csv"
    text = "".join(f"{i % 7},{'' if i % 5 == 0 else i % 3 == 0}\n" for i in range(rows))
    new.write_text(f"id,flag\n{text}")
    code, _, err = call(
        "score", str(path), "--data", str(new), "--out", str(tmp_path / "scores.csv")
    )
    assert code == 0
    assert err == (
        "mpembed: column 'flag' (48 of 48): the model knows few of the values or none; a value is "
        "its text, so 'True' is not 'true', and '3.0' in CSV is not 3\n"
    )


def test_there_is_no_auc_of_one_class(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "new.txt"
    data.write_bytes(clicks(1, label=True))
    _, told, _ = call("score", str(model), "--data", str(data))
    assert told.startswith("1 rows; log loss ")
    assert ", AUC -, accuracy " in told


def test_what_cannot_be_scored_is_one_line(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "new.txt"
    data.write_bytes(clicks(30, label=False))
    assert "--out is needed: the data have no labels" in refused(str(model), "--data", str(data))
    assert "no model is saved there" in refused(str(tmp_path))
    assert "must end in .csv or .parquet" in refused(str(model), "--out", str(tmp_path / "x.txt"))
    assert "no such file" in refused(str(model), "--data", str(tmp_path / "no.txt"))
    same = refused(str(model), "--data", str(data), "--out", str(data))
    assert "is the same file as --data" in same
    for rows in ("0", "-1"):
        assert f"--rows is {rows}; it must be at least 1" in refused(str(model), "--rows", rows)
    assert "need --data" in refused(str(model), "--header")
    data.write_bytes(b"a,b\n1,2\n")
    assert "the model was trained on Criteo's format" in refused(str(model), "--data", str(data))


def test_a_model_of_files_is_not_asked_for_synthetic_clicks(tmp_path: Path) -> None:
    data = tmp_path / "clicks.txt"
    data.write_bytes(clicks(60, label=True))
    path = train(tmp_path / "model", "--data", str(data), "--batch-size", "10")
    assert "--data is needed: the model was not trained on synthetic" in refused(str(path))


def test_a_bad_line_leaves_the_scores_before(model: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "new.txt", tmp_path / "scores.csv"
    data.write_bytes(clicks(30, label=True) + b"\n1\t2\n")
    out.write_text("before")
    assert "line 31" in refused(str(model), "--data", str(data), "--out", str(out))
    assert out.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [data, out]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model: Path) -> None:
    code, out, err = call("score", str(model), "--rows", "50", "--out", "/dev/full")
    assert (code, out) == (1, "")
    assert err == "mpembed: --out /dev/full: cannot be written: No space left on device\n"


def test_no_pytorch_is_needed(model: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'matplotlib', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_module('mpembed', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, "score", str(model), "--rows", "50"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("50 rows; log loss ")


def test_score_names_the_packages_it_lacks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "pyarrow" else True)
    assert refused(str(model)) == "mpembed: score needs pyarrow; install mpembed[train]"
