"""Lists whose separator was forgotten are noticed; other texts are not taken for lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from command_line import call

from mpembed.train.data.list_hint import list_hint

pytestmark = pytest.mark.torch
GENRES = ["action", "comedy", "drama", "horror", "war"]


def lists(separator: str, rows: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [separator.join(rng.choice(GENRES, rng.integers(1, 5), False)) for _ in range(rows)]


@pytest.mark.parametrize("separator", ["|", ";", ","])
@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_lists_are_noticed(separator: str, kind: pa.DataType) -> None:
    columns = {"a": pa.array(range(200)), "genres": pa.array(lists(separator)).cast(kind)}
    hint = list_hint(columns)
    assert hint.startswith("column 'genres': '")
    assert hint.endswith(f"pass --list-separator '{separator}'")


def test_a_long_list_is_shown_in_short() -> None:
    cells = ["|".join(GENRES * (500 + i % 3)) for i in range(200)]
    assert len(list_hint({"genres": pa.array(cells)})) < 200


@pytest.mark.parametrize(
    "cells",
    [
        [f"Mozilla/5.0 (X11; Linux; rv:{i % 9})" for i in range(200)],
        [f"Smith{i % 9}, John" + ", Jr." * (i % 2) for i in range(200)],
        [f"a{i % 5}|b{i % 3}" for i in range(200)],  # keys of two parts
        ["|".join(f"{i}x{j}" for j in range(2 + i % 2)) for i in range(200)],  # nothing recurs
        [f"1,{i % 7}" for i in range(200)],
        ["[1,2]", "[1,2,3]"] * 100,
        lists("|", 10),  # too few
        ["plain"] * 190 + lists("|", 10),
        ["", None] * 100,
    ],
)
def test_others_are_not(cells: list[str | None]) -> None:
    assert list_hint({"a": pa.array(cells, pa.string())}) == ""
    assert list_hint({"a": pa.array([[c] for c in cells], pa.list_(pa.string()))}) == ""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_run_says_it_once_and_not_where_they_are_split(kind: str, tmp_path: Path) -> None:
    path, cells = tmp_path / f"clicks.{kind}", lists("|")
    if kind == "csv":
        rows = "".join(f"{i % 2},{cell}\n" for i, cell in enumerate(cells))
        path.write_text(f"label,genres\n{rows}")
    else:
        labels = [i % 2 for i in range(len(cells))]
        pq.write_table(pa.table({"label": labels, "genres": cells}), path)
    command = ["train", "--data", str(path), "--categorical", "genres", "--dim", "2"]
    command += ["--setting", "int8", "--threads", "1"]
    code, _, err = call(*command)
    assert code == 0, err
    (line,) = (line for line in err.splitlines() if "--list-separator" in line)
    assert line.startswith(f"mpembed: clicks.{kind}: column 'genres': ")
    code, _, err = call(*command, "--list-separator", "|")
    assert code == 0, err
    assert "--list-separator" not in err
