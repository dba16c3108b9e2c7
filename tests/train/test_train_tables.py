"""Clicks in CSV, TSV and Parquet: the same rows give the same blocks and the same metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click_files import BY_NAME, FORMATS, criteo_lines, write_format, write_lines

from mpembed.train.data import lines as text_lines
from mpembed.train.data import parquet
from mpembed.train.data.clicks import Clicks
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.digest import DigestedSource
from mpembed.train.data.encoding import Block
from mpembed.train.data.options import DataOptions
from mpembed.train.data.sources import describe_source, open_source
from mpembed.train.data.synthetic import generate

ROWS = 700


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    return generate(0, ROWS)


def blocks(options: DataOptions, rows: int | None = None, **values: Any) -> list[Block]:
    return list(Dataset(open_source(options, rows), **values).blocks(256))


def assert_same(got: list[Block], want: list[Block]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.part == b.part
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.dense, b.dense)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.offsets, b.offsets)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [None, 403])
def test_every_format_gives_the_blocks_of_criteos(
    tmp_path: Path, clicks: Clicks, name: str, rows: int | None
) -> None:
    source = CriteoFile(write_lines(tmp_path / "criteo.txt", criteo_lines(clicks)), rows)
    options = write_format(tmp_path, name, clicks)
    # Tables with a limit of rows hash hexadecimal digits as numbers, but not other integers.
    limits = (None,) if name == "Parquet, integers" else (None, 20)
    for limit in limits:
        want = Dataset(source, min_count=2, max_rows=limit, log_shift=1)
        got = Dataset(open_source(options, rows), min_count=2, max_rows=limit, log_shift=1)
        assert got.table_rows == want.table_rows
        assert_same(list(got.blocks(256)), list(want.blocks(256)))


@pytest.mark.parametrize("name", ["CSV", "CSV, gzip", "Parquet"])
def test_blocks_do_not_depend_on_how_a_file_is_read(
    tmp_path: Path, clicks: Clicks, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = write_format(tmp_path, name, clicks)
    want = blocks(options, transform="standard")
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 5000)
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 61)
    assert_same(blocks(options, transform="standard"), want)


def test_several_files_are_read_one_after_the_other(tmp_path: Path, clicks: Clicks) -> None:
    lines = criteo_lines(clicks)
    whole = write_lines(tmp_path / "whole.txt", lines)
    for start in range(0, ROWS, 300):
        write_lines(tmp_path / f"part-{start:03}.gz", lines[start : start + 300])
    parts = DataOptions(files=(str(tmp_path / "part-*"),))
    assert_same(blocks(parts), blocks(DataOptions(files=(str(whole),))))
    assert_same(blocks(parts, 350), blocks(DataOptions(files=(str(whole),)), 350))
    described = describe_source(open_source(parts))
    assert described == "part-000.gz to part-600.gz (3 files): Criteo's format, gzip"
    given = tuple(str(tmp_path / f"part-{start}.gz") for start in ("300", "000"))
    turned = open_source(DataOptions(files=given)).describe()
    assert turned["files"] == ["part-300.gz", "part-000.gz"]


def test_a_csv_and_a_parquet_file_may_follow_one_another(tmp_path: Path, clicks: Clicks) -> None:
    options = [write_format(tmp_path, name, clicks[a:b]) for name, a, b in (
        ("CSV", 0, 300), ("Parquet", 300, 700),
    )]  # fmt: skip
    both = DataOptions(files=tuple(o.files[0] for o in options), **BY_NAME)
    whole = write_lines(tmp_path / "whole.txt", criteo_lines(clicks))
    assert_same(blocks(both), blocks(DataOptions(files=(str(whole),))))


def digest_of(options: DataOptions) -> str:
    source = DigestedSource(open_source(options))
    for _ in source.chunks(source.rows):
        pass
    return source.digest


def test_the_digest_does_not_depend_on_how_rows_are_cut(
    tmp_path: Path, clicks: Clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_format(tmp_path, "CSV", clicks)]
    want = digest_of(files[0])
    files += [write_format(tmp_path, name, clicks) for name in ("CSV, gzip", "Parquet")]
    parts: list[str] = []
    for number, rows in enumerate((slice(0, 300), slice(300, None))):
        folder = tmp_path / str(number)
        folder.mkdir()
        parts += write_format(folder, "CSV", clicks[rows]).files
    files.append(DataOptions(files=tuple(parts), **BY_NAME))
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 5000)
    assert [digest_of(options) for options in files] == [want] * 4
    changed = write_format(tmp_path / "0", "CSV", replace(clicks, labels=1 - clicks.labels))
    assert digest_of(changed) != want


def test_the_digest_tells_lists_apart(tmp_path: Path) -> None:
    path, found = tmp_path / "a.parquet", []
    for lists in ([["a", "b"], ["c"]], [["a"], ["b", "c"]], [["a"], ["b", "d"]]):
        pq.write_table(pa.table({"label": [0, 1], "x": lists}), path)
        found.append(digest_of(DataOptions(files=(str(path),), categorical=("x",))))
    assert len(set(found)) == 3


def people(rows: int) -> dict[str, list[Any]]:
    """Make columns of several kinds, with missing values."""
    rng = np.random.default_rng(0)

    def some(values: Iterable[Any], each: int) -> list[Any]:
        return [None if i % each == 0 else value for i, value in enumerate(values)]

    return {
        "clicked": (rng.random(rows) < 0.3).tolist(),
        "price": some(rng.normal(9, 3, rows).round(3).tolist(), 7),
        "visits": some(rng.integers(-2, 50, rows).tolist(), 5),
        "city": some((f"Zürich, {x}" for x in rng.integers(0, 9, rows)), 11),
        "tags": [[f"t{t}" for t in rng.integers(0, 6, n)] for n in rng.integers(0, 4, rows)],
    }


PEOPLE: dict[str, Any] = {
    "label": "clicked",
    "dense": ("price", "visits"),
    "categorical": ("city", "tags"),
}


def write_people(path: Path, rows: int = 200) -> Path:
    columns = people(rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    cells = [
        [str(c).lower() for c in columns["clicked"]],
        *[["" if v is None else repr(v) for v in columns[name]] for name in ("price", "visits")],
        ["" if v is None else f'"{v}"' for v in columns["city"]],
        ["/".join(v) for v in columns["tags"]],
    ]
    text = "".join(",".join(row) + "\r\n" for row in zip(*cells, strict=True))
    path.write_text("\ufeff" + ",".join(columns) + "\r\n" + text, encoding="utf-8", newline="")
    return path


def test_lists_quotes_floats_and_missing_values_are_the_same_in_csv_and_parquet(
    tmp_path: Path,
) -> None:
    csv = DataOptions(files=(str(write_people(tmp_path / "a.csv")),), list_separator="/", **PEOPLE)
    got, want = open_source(csv), open_source(
        DataOptions(files=(str(write_people(tmp_path / "a.parquet")),), **PEOPLE)
    )  # fmt: skip
    assert describe_source(got) == (
        "a.csv: comma-separated text, with a header; label 'clicked', 2 dense, 2 categorical with "
        "lists"
    )
    assert describe_source(want) == (
        "a.parquet: Parquet; label 'clicked', 2 dense, 2 categorical with lists"
    )
    assert_same(list(Dataset(got).blocks(64)), list(Dataset(want).blocks(64)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), "dictionary"])
def test_a_list_separator_splits_strings_of_parquet_too(tmp_path: Path, kind: Any) -> None:
    csv, parquet_file = tmp_path / "a.csv", tmp_path / "a.parquet"
    cells = ["a|b", "c", "", "b|c|a"] * 5
    csv.write_text("label,x,n\n" + "".join(f"{i % 2},{x},{i}\n" for i, x in enumerate(cells)))
    texts = pa.array([cell or None for cell in cells])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    numbers = list(range(20))
    pq.write_table(pa.table({"label": [0, 1] * 10, "x": texts, "n": numbers}), parquet_file)
    got, want = (
        blocks(DataOptions(files=(str(path),), categorical=("x", "n"), list_separator="|"))
        for path in (csv, parquet_file)
    )
    assert_same(got, want)
    assert got[0].offsets is not None
    assert np.diff(got[0].offsets)[:4].tolist() == [2, 1, 1, 3]


def test_bags_hold_the_values_of_their_rows(tmp_path: Path) -> None:
    options = DataOptions(files=(str(write_people(tmp_path / "a.parquet")),), **PEOPLE)
    dataset, columns = Dataset(open_source(options)), people(200)
    (block, *_) = dataset.blocks(200)
    rows: dict[str, int] = {}
    for batch in block.batches(37):
        assert batch.offsets is not None
        assert batch.offsets[-1] == len(batch.ids)
    sizes = [len(batch) for batch in block.batches(37)]
    start = 0
    for size, batch in zip(sizes, block.batches(37), strict=True):
        assert batch.offsets is not None
        for row in range(size):
            a, b = batch.offsets[size + row : size + row + 2]  # of the second table
            found = batch.ids[a:b].tolist()
            wanted = columns["tags"][start + row] or [None]
            assert len(found) == len(wanted)
            assert [
                rows.setdefault(str(tag), row_id) for tag, row_id in zip(wanted, found, strict=True)
            ] == found
        start += size
    assert rows["None"] == 0
    assert len(set(rows.values())) == len(rows) == 7


def test_numbers_with_fractions_are_standardised_and_whole_ones_get_the_logarithm(
    tmp_path: Path,
) -> None:
    options = DataOptions(files=(str(write_people(tmp_path / "a.csv")),), **PEOPLE)
    columns = people(200)
    (train, *_) = blocks_of_200 = list(Dataset(open_source(options)).blocks(200))
    assert [block.part for block in blocks_of_200] == ["train", "validation", "test"]
    prices = np.array(columns["price"], float)[:171]
    mean, deviation = np.nanmean(prices), np.nanstd(prices)
    want = np.where(np.isnan(prices), 0.0, (prices - mean) / deviation)
    np.testing.assert_allclose(train.dense[:, 0], want, rtol=1e-5, atol=1e-6)
    visits = np.array(columns["visits"], float)[:171]
    logs = np.log(np.maximum(np.where(np.isnan(visits), -1, visits), -1) + 2)
    np.testing.assert_allclose(train.dense[:, 1], logs, rtol=1e-6)
    (standard, *_) = Dataset(open_source(options), transform="standard").blocks(200)
    assert abs(standard.dense[:, 1].mean()) < 1e-5
    (logarithm, *_) = Dataset(open_source(options), transform="log").blocks(200)
    assert logarithm.dense[:, 0].min() >= 0


def test_without_numbers_there_is_one_constant_feature(tmp_path: Path) -> None:
    path = str(write_people(tmp_path / "a.csv"))
    options = DataOptions(files=(path,), label="clicked", categorical=("city", "price"))
    for block in blocks(options):
        np.testing.assert_array_equal(block.dense, np.ones((len(block), 1), np.float32))
        assert block.ids.shape == (2, len(block))


def test_names_positions_ranges_and_patterns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,click,a,a,b2,b1,\n" + "1,0,2,3,4,5,6\n" * 20)

    def chosen(*categorical: str, dense: tuple[str, ...] = ()) -> tuple[str, ...]:
        options = DataOptions(
            files=(str(path),), label="click", dense=dense, categorical=categorical
        )
        return open_source(options).columns.categorical

    assert chosen("b1,x") == ("b1", "x")
    assert chosen("b*") == ("b2", "b1")
    assert chosen("1", "5-7") == ("x", "b2", "b1", "column (7)")
    assert chosen("4") == ("a (4)",)
    assert chosen("b2-b1,x-x") == ("b2", "b1", "x")
    assert chosen("*", dense=("x", "3")) == ("a (4)", "b2", "b1", "column (7)")
    assert chosen("a (3)") == ("a (3)",)
