"""A stored encoding: another process encodes new rows as the one that trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click_files import BY_NAME, BY_POSITION, criteo_lines, parquet_table, write_format, write_lines

from mpembed.train.data.clicks import Clicks, DataError
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.encoding import Block, Encoding
from mpembed.train.data.options import DataOptions
from mpembed.train.data.sources import open_source
from mpembed.train.data.synthetic import generate


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    return generate(0, 400)


def stored(encoding: Encoding) -> Encoding:
    """Send an encoding through JSON and bytes."""
    arrays = {
        name: np.frombuffer(array.tobytes(), np.int64) for name, array in encoding.arrays().items()
    }
    return Encoding.restore(json.loads(json.dumps(encoding.describe())), arrays)


def joined(blocks: list[Block]) -> dict[str, Any]:
    return {
        "labels": np.concatenate([b.labels for b in blocks]),
        "dense": np.concatenate([b.dense for b in blocks]),
        "ids": np.concatenate([b.ids for b in blocks], axis=1),
    }


def assert_scored(encoding: Encoding, dataset: Dataset, path: Path, labels: bool) -> None:
    """Read a file as a scoring process does and compare with the blocks of training."""
    source = open_source(DataOptions(files=(str(path),)), columns=encoding.columns)
    assert source.columns.dense == encoding.columns.dense
    assert source.columns.categorical == encoding.columns.categorical
    blocks = list(encoding.blocks(source, 64))
    assert {block.part for block in blocks} == {"score"}
    assert [len(block) for block in blocks] == [64] * 6 + [16]
    got, want = joined(blocks), joined(list(dataset.blocks(64)))
    np.testing.assert_array_equal(got["dense"], want["dense"])
    np.testing.assert_array_equal(got["ids"], want["ids"])
    wanted = want["labels"] if labels else np.full(400, np.nan, np.float32)
    np.testing.assert_array_equal(got["labels"], wanted)


@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("transform", ["log", "standard"])
def test_new_rows_are_encoded_as_those_of_training(
    tmp_path: Path, clicks: Clicks, limit: int | None, transform: str
) -> None:
    options = write_format(tmp_path, "CSV", clicks)
    dataset = Dataset(open_source(options), 2, limit, transform=transform)
    encoding = stored(dataset.encoding)
    assert encoding.table_rows == dataset.table_rows
    assert_scored(encoding, dataset, Path(options.files[0]), labels=True)
    table = parquet_table(clicks, "dictionaries")
    path = tmp_path / "new.parquet"
    reordered = [*reversed(table.column_names[1:]), "label"]
    pq.write_table(table.select(reordered), path)
    assert_scored(encoding, dataset, path, labels=True)
    pq.write_table(table.drop_columns(["label"]), path)
    assert_scored(encoding, dataset, path, labels=False)


def test_labels_may_be_absent_where_columns_have_no_names(tmp_path: Path, clicks: Clicks) -> None:
    lines = criteo_lines(clicks)
    bare = write_lines(tmp_path / "bare", [line.partition("\t")[2] for line in lines])
    for options in (
        DataOptions(files=(str(write_lines(tmp_path / "a.csv", lines, ",")),), **BY_POSITION),
        DataOptions(files=(str(write_lines(tmp_path / "a.txt", lines)),)),  # Criteo's format
    ):
        dataset = Dataset(open_source(options))
        encoding = stored(dataset.encoding)
        assert_scored(encoding, dataset, Path(options.files[0]), labels=True)
        assert_scored(encoding, dataset, bare, labels=False)


def ids_of(encoding: Encoding, path: Path, data: bytes, header: bool | None = None) -> Any:
    path.write_bytes(data)
    options = DataOptions(files=(str(path),), header=header)
    source = open_source(options, columns=encoding.columns)
    assert source.columns.categorical == encoding.columns.categorical
    (block,) = encoding.blocks(source, 64)
    return block.ids.tolist()


def test_a_header_may_be_there_at_one_time_and_not_at_another(tmp_path: Path) -> None:
    path, named, bare = tmp_path / "a.csv", b"label,x,y\n", b"0,a,c\n1,b,d\n" * 4
    by_name = DataOptions(files=(str(path),), categorical=("y", "x"))
    by_place = DataOptions(files=(str(path),), label="1", categorical=("3", "2"))
    for data, options, default in ((named + bare, by_name, True), (bare, by_place, False)):
        path.write_bytes(data)
        encoding = stored(Dataset(open_source(options)).encoding)
        want = ids_of(encoding, path, data)
        assert want == [[2, 3] * 4] * 2
        for header in (True, False):
            for labels in (True, False):
                new = (named if header else b"") + bare
                if not labels:
                    new = re.sub(rb"(?m)^\w+,", b"", new)
                assert ids_of(encoding, path, new, header) == want
                if header == default:
                    assert ids_of(encoding, path, new) == want


def test_rows_without_a_label_are_scored_and_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"label,x\n" + b"0,a\n1,b\n" * 4)
    options = DataOptions(files=(str(path),), categorical=("x",))
    encoding = Dataset(open_source(options)).encoding
    path.write_bytes(b"label,x\n" + b"0,a\n,b\n" * 4)
    new = tmp_path / "a.parquet"
    for kind in (pa.int64(), pa.float64(), pa.string(), pa.bool_()):
        labels = pa.array([0, None] * 4).cast(kind)
        pq.write_table(pa.table({"label": labels, "x": ["a", "b"] * 4}), new)
        for one in (path, new):
            source = open_source(DataOptions(files=(str(one),)), columns=encoding.columns)
            (block,) = encoding.blocks(source, 64)
            np.testing.assert_array_equal(block.labels, np.array([0.0, np.nan] * 4, np.float32))
            with pytest.raises(DataError, match="holds nothing, not a label"):
                Dataset(open_source(DataOptions(files=(str(one),), categorical=("x",))))
    path.write_bytes(b"label,x\n0,a\n2,b\n")
    source = open_source(DataOptions(files=(str(path),)), columns=encoding.columns)
    with pytest.raises(DataError, match="holds '2', not a label"):
        list(encoding.blocks(source, 64))


def test_bad_lines_without_labels_are_named(tmp_path: Path, clicks: Clicks) -> None:
    lines = criteo_lines(clicks)
    options = DataOptions(files=(str(write_lines(tmp_path / "a.txt", lines)),))
    encoding = Dataset(open_source(options)).encoding
    bare = [line.partition("\t")[2] for line in lines]
    for bad, message in (
        (lines[0], r"line 31: 40 columns, 39 expected \(13 integers, 26 categoricals\)"),
        ("x" + bare[0], r"line 31: integer column 1 holds 'x"),
    ):
        path = write_lines(tmp_path / "bare.txt", [*bare[:30], bad, *bare[30:]])
        source = open_source(DataOptions(files=(str(path),)), columns=encoding.columns)
        with pytest.raises(DataError, match=message):
            list(encoding.blocks(source, 64))


def test_lists_are_taken_where_the_model_was_trained_on_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    lists = [["a", "b"], ["c"], []] * 10
    pq.write_table(pa.table({"label": [0, 1, 1] * 10, "tags": lists}), path)
    dataset = Dataset(open_source(DataOptions(files=(str(path),), categorical=("tags",))))
    encoding = stored(dataset.encoding)
    new = tmp_path / "new.parquet"
    pq.write_table(pa.table({"tags": ["c", "a", "never seen", None]}), new)
    source = open_source(DataOptions(files=(str(new),)), columns=encoding.columns)
    (block,) = encoding.blocks(source, 64)
    (first, *_) = dataset.blocks(64)
    a, _, c, missing = first.ids[:4].tolist()
    assert block.ids.tolist() == [c, a, 1, missing]
    assert block.offsets is not None
    assert block.offsets.tolist() == [0, 1, 2, 3, 4]


def test_files_that_do_not_fit_the_model_are_refused(tmp_path: Path, clicks: Clicks) -> None:
    options = write_format(tmp_path, "CSV", clicks)
    of_table = Dataset(open_source(options)).encoding
    criteo = write_lines(tmp_path / "a.txt", criteo_lines(clicks))
    of_criteo = Dataset(open_source(DataOptions(files=(str(criteo),)))).encoding
    parquet = tmp_path / "few.parquet"
    pq.write_table(parquet_table(clicks, "strings").drop_columns(["C7"]), parquet)
    for encoding, path, message in (
        (of_table, criteo, "tab-separated text without the column 'I1' that the model was"),
        (of_table, parquet, "without the column 'C7' that the model was trained on; it has 39"),
        (of_criteo, parquet, "this is a Parquet file; the model was trained on Criteo's format"),
        (of_criteo, Path(options.files[0]), "comma-separated; the model was trained on Criteo's"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(DataOptions(files=(str(path),)), columns=encoding.columns)


def test_what_is_no_stored_encoding_is_refused(clicks: Clicks, tmp_path: Path) -> None:
    options = write_format(tmp_path, "CSV", clicks)
    assert BY_NAME.items() <= vars(options).items()
    encoding = Dataset(open_source(options)).encoding
    described, arrays = encoding.describe(), encoding.arrays()
    values = arrays["values.3"]
    columns, tables = described["columns"], described["tables"]

    def table(**changes: Any) -> dict[str, Any]:
        return described | {"tables": [tables[0] | changes, *tables[1:]]}

    def named(*names: str) -> dict[str, Any]:
        return described | {"columns": columns | {"names": names}}

    for bad, of, message in (
        ({}, arrays, "not a stored encoding"),
        (table(num_rows=float(tables[0]["num_rows"])), arrays, "not a stored vocabulary: num_rows"),
        (table(hashed=0), arrays, "not a stored vocabulary: num_rows [0-9]+, hashed 0"),
        (named(*columns["names"][:-1]), arrays, "its columns are not those of a file"),
        (named(*columns["names"][1:]), arrays, "its columns are not those of a file"),
        (named(*columns["names"], "C1"), arrays, "its columns are not those of a file"),
        (described | {"columns": columns | {"label": "C1"}}, arrays, "are not those of a file"),
        (described | {"layout": 99}, arrays, "the encoding has layout 99, not 1"),
        (described | {"dense": []}, arrays, "its columns and its parts differ in number"),
        (described, {}, "not a stored encoding"),
        (described, arrays | {"values.3": values[:-1]}, "not a stored vocabulary"),
        (described, arrays | {"values.3": values[::-1]}, "not a stored vocabulary"),
        (described, arrays | {"values.3": values.astype(np.float64)}, "not a stored vocabulary"),
    ):
        with pytest.raises(DataError, match=message):
            Encoding.restore(bad, of)
