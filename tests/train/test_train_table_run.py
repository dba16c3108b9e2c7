"""Training on tables: the metrics of Criteo's format, bags, no numbers, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

import torch
from click_files import criteo_lines, write_format, write_lines
from typer.testing import CliRunner

from mpembed import cli
from mpembed.train.data.clicks import Columns
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.encoding import Block
from mpembed.train.data.options import DataOptions, OptionError
from mpembed.train.data.sources import open_source
from mpembed.train.data.synthetic import generate
from mpembed.train.model import Perceptrons
from mpembed.train.runner import open_dataset, run
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.trial import Trial

pytestmark = pytest.mark.torch
SETTINGS = (Setting("fp32"), Setting("int4", 0.05))


def call(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(cli.app, ["train", "--dim", "4", "--threads", "1", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def metrics(data: DataOptions) -> list[dict[str, Any]]:
    options = TrainOptions(SETTINGS, data, dim=4, threads=1)
    result = run(options, open_dataset(options), lambda trial, rows: None)
    kept = ("test", "validation", "online", "curve", "cache", "hit_rate")
    return [{name: one[name] for name in kept} for one in result["runs"]]


def test_csv_and_parquet_give_the_metrics_of_criteos_format_to_the_last_digit(
    tmp_path: Path,
) -> None:
    clicks = generate(0, 450)
    path = write_lines(tmp_path / "criteo.txt", criteo_lines(clicks))
    want = metrics(DataOptions(files=(str(path),)))
    for name in ("CSV", "Parquet"):
        assert metrics(write_format(tmp_path, name, clicks)) == want


#: The columns of Avazu's click-through rate data (Kaggle, 2014).
AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def write_avazu(path: Path, rows: int) -> Path:
    """Write made-up rows in the format of Avazu's file."""
    rng = np.random.default_rng(0)
    lines = [AVAZU]
    for row in range(rows):
        site = int(rng.zipf(1.5)) % 30
        click = int(rng.random() < (0.6 if site % 3 == 0 else 0.1))
        hexadecimal = [f"{(site * 2654435761 + k) % 2**32:08x}" for k in range(3)]
        device = [f"{x:08x}" for x in rng.integers(0, 2**32, 3)]
        app = [f"{x:08x}" for x in rng.integers(0, 5, 3)]
        small = rng.integers(0, 4, 2).tolist()
        rest = [20000 + site, 320, 50, *rng.integers(0, 900, 4).tolist(), -1]
        cells = [10**19 + row, click, 14102100 + row // 50, 1005, 0, *hexadecimal, *app, *device]
        lines.append(",".join(map(str, [*cells, *small, *rest])))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_public_format_trains_with_one_command(tmp_path: Path) -> None:
    path, report = write_avazu(tmp_path / "avazu.csv", 1800), tmp_path / "r.json"
    chosen = ["--label", "click", "--categorical", "hour,banner_pos,site_*,app_*,device_*,C*"]
    out, err = call("--data", str(path), *chosen, "--setting", "int8:0.1", "--json", str(report))
    assert err.splitlines()[0] == (
        "mpembed: avazu.csv: comma-separated text, with a header; label 'click', 0 dense, "
        "22 categorical"
    )
    assert "avazu.csv: 1,800 clicks" in out
    result = json.loads(report.read_text())
    assert result["config"]["data"]["label"] == "click"
    assert result["data"]["format"].startswith("comma-separated text")
    assert set(result["runs"][0]["memory"]["tables"]) >= {"site_id", "C21"}
    curve = [point["loss"] for point in result["runs"][0]["curve"]]
    assert np.mean(curve[-5:]) < np.mean(curve[:3])


def test_lists_of_several_files_train_with_one_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in range(3):
        tags = [rng.integers(0, 20, n).tolist() for n in rng.integers(0, 5, 200)]
        clicked = [int(3 in tag) for tag in tags]
        columns = {"clicked": clicked, "tags": tags, "age": rng.normal(40, 9, 200)}
        pq.write_table(pa.table(columns), tmp_path / f"part-{part}.parquet")
    chosen = ["--label", "clicked", "--categorical", "tags", "--dense", "age"]
    arguments = ["--data", str(tmp_path / "part-*.parquet"), *chosen, "--epochs", "8"]
    out, err = call(*arguments, "--batch-size", "32", "--setting", "fp32")
    assert "part-0.parquet to part-2.parquet (3 files): Parquet; label 'clicked', 1 dense" in err
    (line,) = (line for line in out.splitlines() if line.strip().startswith("fp32"))
    assert float(line.split()[1]) < 0.3  # 0.37 is the entropy of the labels


def test_bags_of_one_value_train_as_single_values_do() -> None:
    options = TrainOptions(SETTINGS, rows=600, dim=4, threads=1)
    dataset = Dataset(open_source(options.data, 600))
    for setting in options.settings:
        single, bags = (Trial(setting, options, dataset.table_rows, 0) for _ in range(2))
        for block in dataset.blocks(256, "train"):
            single.train(block)
            offsets = np.arange(block.ids.size + 1, dtype=np.int32)
            bags.train(Block(block.part, block.labels, block.dense, block.ids.reshape(-1), offsets))
        assert single.records.losses == bags.records.losses


@pytest.mark.parametrize(("dense", "categorical"), [(0, 1), (1, 1), (0, 5), (3, 2)])
def test_perceptrons_follow_the_columns(dense: int, categorical: int) -> None:
    columns = Columns(tuple(map(str, range(dense))), tuple(map(str, range(categorical))))
    net = Perceptrons(8, 0, columns)
    logits = net(torch.ones(5, max(dense, 1)), torch.ones(5, 8 * categorical))
    assert logits.shape == (5,)
    (first, *_) = (m for m in net.top if isinstance(m, torch.nn.Linear))
    assert first.in_features == 8 + categorical * (categorical + 1) // 2


def test_a_batch_of_too_many_ids_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = [f"c{i}" for i in range(200)]
    path.write_text(",".join(["label", *names]) + "\n" + ("0" + ",1" * 200 + "\n") * 9)
    data = DataOptions(files=(str(path),), categorical=("c*",))
    with pytest.raises(OptionError, match="--batch-size is 16777216: a batch would have 3,355,443"):
        open_dataset(TrainOptions(SETTINGS, data, batch_size=2**24))
