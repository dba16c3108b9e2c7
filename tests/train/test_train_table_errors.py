"""Every way in which a table of clicks can be wrong: what is said of it, and where."""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpembed.train.data import lines as text_lines
from mpembed.train.data.clicks import DataError
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.options import DataOptions, OptionError
from mpembed.train.data.sources import open_source

HEAD = b"click,a,b\n"
BODY = b"".join(b"%d,%d,v%d\n" % (i % 2, i, i % 5) for i in range(60))
CHOSEN: dict[str, Any] = {"label": "click", "dense": ("a",), "categorical": ("b",)}


def refused(path: Path, rows: int | None = None, **options: Any) -> str:
    """Return what is said of a file, without its folder."""
    with pytest.raises(DataError) as error:
        Dataset(open_source(DataOptions(files=(str(path),), **options), rows))
    return str(error.value).replace(f"{path.parent}/", "")


def parquet_bytes(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=20)
    return file.getvalue()


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(3))
    return file.getvalue()


CLICKS = {"click": [0, 1] * 30, "a": list(range(60)), "b": ["x", "y", "z"] * 20}
PARQUET = parquet_bytes(**CLICKS)

#: Bytes of a bad line among good ones, and what is said of it.
LINES = {
    "few cells": (b"1,2\n", "2 columns, 3 expected"),
    "many cells": (b"1,2,3,4\n", "4 columns, 3 expected"),
    "label": (b"2,2,3\n", "column 'click' holds '2', not a label: 0, 1, false or true"),
    "no label": (b",2,3\n", "column 'click' holds nothing, not a label"),
    "text for a number": (b"1,abc,3\n", "column 'a' holds 'abc', not a number; is it a"),
    "long text": (b"1," + b"x" * 99 + b",3\n", "column 'a' holds 'xxxxxxxxxxxxxxxxxxxxxxxx...'"),
    "infinity": (b"1,inf,3\n", "column 'a' holds inf, not a finite number"),
    "a number too large": (b"1,1e39,3\n", "column 'a' holds 1e+39, not a finite number"),
    "empty": (b"\n", "the line is empty"),
    "open quote": (b'1,2,"3\n', "a quote is not closed on its line"),
    "line end in quotes": (b'1,2,"3\n4"\n', "a quote is not closed on its line"),
    "two quotes, one open": (b'1,2"3,"4\n', "a quote is not closed on its line"),
    "quotes over two lines": (b'1,2"3,"4\n0,5,x"z"\n', "a quote is not closed on its line"),
    "carriage return": (b"1,2\r,3\n", "a carriage return stands alone"),
}


@pytest.mark.parametrize("number", [1, 30, 61])
@pytest.mark.parametrize("block", [200, 4 << 20])
@pytest.mark.parametrize("kind", LINES)
def test_bad_lines_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, block: int, number: int
) -> None:
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", block)
    bad, message = LINES[kind]
    lines = [HEAD, *BODY.splitlines(keepends=True)]
    lines.insert(number, bad)
    path = tmp_path / "a.csv"
    path.write_bytes(b"".join(lines))
    assert refused(path, **CHOSEN).startswith(f"a.csv: line {number + 1}: {message}")
    path.write_bytes(gzip.compress(b"".join(lines)))
    assert refused(path, **CHOSEN).startswith(f"a.csv: line {number + 1}: {message}")


def test_the_first_of_several_bad_lines_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEAD + BODY + b"2,0,x\n" + BODY + b"1,x,x\n" + BODY)
    assert refused(path, **CHOSEN).startswith("a.csv: line 62: column 'click' holds '2'")
    path.write_bytes(HEAD + BODY + b"1,x,x\n" + BODY + b"2,0,x\n" + BODY)
    assert refused(path, **CHOSEN).startswith("a.csv: line 62: column 'a' holds 'x'")


NUMBERED: dict[str, Any] = {"label": "1", "categorical": ("3",)}
WRONG = {
    "pandas.csv": (b"0,1,2\n" + BODY, NUMBERED, "line 1 counts from 0 to 2; pass --header if the"),
    "numbers.csv": (b"1,2,3\n" + BODY, NUMBERED, "line 1 counts from 1 to 3; pass --header if"),
    "no columns.csv": (HEAD + BODY, {}, "comma-separated; pass --categorical and, where"),
    "no columns.tsv": ((HEAD + BODY).replace(b",", b"\t"), {}, "tab-separated; pass --categor"),
    "not Criteo's.tsv": (BODY.replace(b",", b"\t"), {}, "tab-separated; pass --categorical"),
    "no columns.parquet": (PARQUET, {}, "this is a Parquet file; pass --categorical and"),
    "no label.parquet": (
        PARQUET,
        {"categorical": ("b",)},
        "this is a Parquet file without a column 'label'; it has 3: click, a, b; pass --label",
    ),
    "no label.csv": (
        HEAD + BODY,
        {"categorical": ("b",)},
        "this is comma-separated text without a column 'label'; it has 3: click, a, b",
    ),
    "absent.csv": (
        HEAD + BODY,
        {**CHOSEN, "dense": ("x*",)},
        "this is comma-separated text without a",
    ),
    "past the end.csv": (HEAD + BODY, {**CHOSEN, "dense": ("4",)}, "this is comma-separated text"),
    "no categorical.csv": (HEAD + BODY, {"label": "click"}, "this is comma-separated text; pass"),
    "other.csv": (HEAD.replace(b",", b"^") + BODY, CHOSEN, "line 1 has no comma, tab, semicolon"),
    "empty.csv": (b"", CHOSEN, "the file is empty"),
    "blank.csv": (b"\n\n", CHOSEN, "the file is empty, or its first line is"),
    "header.csv": (HEAD, CHOSEN, "the file has no rows after its header"),
    "few.csv": (HEAD + BODY[:30], CHOSEN, "5 rows are too few to split"),
    "latin.csv": (b"click,a,\xe9\n" + BODY, CHOSEN, "line 1: is not UTF-8 text"),
    "mac.csv": ((HEAD + BODY).replace(b"\n", b"\r"), CHOSEN, "line 1: a carriage return stands"),
    "utf-16.csv": ((HEAD + BODY).decode().encode("utf-16"), CHOSEN, "is UTF-16 text; convert it"),
    "le.csv": ((HEAD + BODY).decode().encode("utf-16-le"), CHOSEN, "is UTF-16 text; convert it"),
    "a.npz": (npz_bytes(), {}, "is a zip archive, such as npz or xlsx; unpack it"),
    "a.csv": (npz_bytes(), CHOSEN, "is a zip archive, such as npz or xlsx; unpack it"),
    "a.json": (b'{"click": 1}\n', {}, "is JSON; write it as CSV or Parquet"),
    "a.bz2": (b"BZh91AY&SY", CHOSEN, "is compressed with bzip2; gzip and zstd are read"),
    "binary": (b"ab\0\1\2" * 9, CHOSEN, "is not text: it has zero bytes"),
    "twice.gz": (gzip.compress(gzip.compress(HEAD)), CHOSEN, "is gzip inside gzip"),
    "p.parquet.gz": (gzip.compress(PARQUET), CHOSEN, "is a Parquet file inside gzip; decompress"),
    "plain.zst": (HEAD + BODY, CHOSEN, "not zstd data, though the name ends in .zst"),
    "cut.csv.gz": (gzip.compress(HEAD + BODY)[:-40], CHOSEN, "line "),
    "cut.parquet": (PARQUET[: len(PARQUET) // 2], CHOSEN, "row 1: the Parquet data cannot be read"),
    "short.parquet": (b"PAR1", CHOSEN, "row 1: the Parquet data cannot be read: "),
    "numbers.parquet": (
        PARQUET,
        {"label": "click", "dense": ("b",), "categorical": ("a",)},
        "column 'b' is of type string; --dense takes numbers",
    ),
    "times.parquet": (
        parquet_bytes(label=[0] * 9, t=pa.array([1] * 9, pa.timestamp("s"))),
        {"categorical": ("t",)},
        "column 't' is of type timestamp[ms]; --categorical takes strings",
    ),
    "labels.parquet": (PARQUET, {"label": "a", "categorical": ("b",)}, "row 3: column 'a' holds 2"),
    "no labels.parquet": (PARQUET, {"label": "b", "categorical": ("a",)}, "row 1: column 'b' hold"),
    "fractions.parquet": (
        parquet_bytes(label=[0] * 60, x=[1.0] * 45 + [0.5] * 15),
        {"categorical": ("x",)},
        "row 46: column 'x' holds 0.5, not a whole number; use it with --dense",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_recognised_by_their_content(tmp_path: Path, name: str) -> None:
    data, options, message = WRONG[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert refused(path, **options).startswith(f"{name}: {message}")


def test_a_first_line_that_counts_is_what_the_options_say(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"0,1,2\n" + BODY)
    for header in (True, False):
        source = open_source(DataOptions(files=(str(path),), header=header, **NUMBERED))
        assert source.rows == 61 - header


def test_damaged_pages_of_parquet_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    texts = [f"{x:016x}" for x in rng.integers(0, 2**62, 40_000)]
    table = pa.table({"label": rng.integers(0, 2, 40_000), "b": texts})
    pq.write_table(table, path, row_group_size=20_000, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    at = data.index(texts[30_000].encode())
    data[at - 4 : at] = b"\xff\xff\xff\xff"  # its length
    path.write_bytes(data)
    said = refused(path, categorical=("b",))
    assert said.startswith("a.parquet: row ")
    assert int(said.split("row ")[1].split(":")[0]) in range(16_385, 30_002)  # its batch


def test_lines_without_an_end_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "_LINE_BYTES", 5_000_000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(HEAD + BODY + b"1" * 20_000_000))
    said = refused(path, **CHOSEN)
    assert said.startswith("a.csv.gz: line 62: is longer than 4 MiB; lines end with LF or CR LF")


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_bytes(HEAD + BODY)

    def second_is(data: bytes) -> str:
        second.write_bytes(data)
        return refused(tmp_path / "*.csv", **CHOSEN)

    other = "2.csv: the columns are not those of the first file: "
    assert second_is(HEAD.replace(b"a", b"z") + BODY) == other + "column 2 is 'z', not 'a'"
    assert second_is(BODY) == other + "column 1 is '0 (1)', not 'click'"
    assert second_is(b"click,b\n1,2\n") == other + "2, not 3"
    assert second_is(HEAD + BODY + b"1,x,2\n").startswith("2.csv: line 62: column 'a' holds 'x'")


def test_columns_that_are_named_twice_or_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"click,a,a\n" + BODY)
    said = "this is comma-separated text without a column 'a'; it has 3: click, a (2), a (3)"
    assert said in refused(path, label="click", categorical=("a",))
    path.write_bytes(HEAD + BODY)
    assert refused(path, label="click", categorical=("a,2",)) == (
        "--categorical: column 'a' is named twice"
    )
    taken = DataOptions(files=(str(path),), label="click", dense=("a",), categorical=("?,b",))
    with pytest.raises(DataError, match="'b' is named twice"):
        open_source(taken)  # the pattern has it already, but neither 'click' nor 'a'
    assert open_source(replace(taken, categorical=("?",))).columns.categorical == ("b",)
    assert refused(path, label="click", categorical=("1-3",)) == (
        "--categorical: column 'click' is already the label or a number"
    )
    assert refused(path, label="click", categorical=("3-2",)) == (
        "--categorical 3-2: the range is empty"
    )


@pytest.mark.parametrize("header", [HEAD, b""])
@pytest.mark.parametrize("zeros", [0, 1, 9, 10, 60])
def test_a_position_may_have_zeros_before_it(tmp_path: Path, header: bytes, zeros: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(header + BODY)
    for number in ("0", "4", "11", "1" * 5000):
        said = refused(path, label="0" * zeros + number, categorical=("3",))
        assert f"text without a column '{'0' * zeros}{number}'; it has 3: " in said
    label, last = "0" * zeros + "1", "0" * zeros + "3"
    columns = open_source(DataOptions((str(path),), label, categorical=(last,))).columns
    assert (columns.label, *columns.categorical) == (("click", "b") if header else ("1", "3"))


USELESS = [
    ("a.txt", {"header": True}, "--header is of no use: the files are in Criteo's format"),
    ("a.txt", {"header": False}, "--no-header is of no use: the files are in Criteo's format"),
    ("a.txt", {"delimiter": ","}, "--delimiter is of no use: the files are in Criteo's format"),
    ("a.txt", {"list_separator": "|"}, "--list-separator is of no use: the files are in Crit"),
    ("*.parquet", {**CHOSEN, "header": False}, "--no-header is of no use: the files are all Par"),
    ("*.parquet", {**CHOSEN, "delimiter": ","}, "--delimiter is of no use: the files are all Par"),
]


@pytest.mark.parametrize(("name", "options", "message"), USELESS)
def test_options_that_would_change_nothing(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    for file in ("a.txt", "1.parquet", "2.parquet"):
        line = b"\t".join([b"1"] * 40) + b"\n"
        (tmp_path / file).write_bytes(PARQUET if file.endswith("parquet") else line * 9)
    assert refused(tmp_path / name, **options).startswith(message)
    if "delimiter" in options and "label" in options:  # one of the files is text
        (tmp_path / "1.parquet").write_bytes(HEAD + BODY)
        open_source(DataOptions(files=(str(tmp_path / name),), **options))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("-",), "--data -: clicks are read several times, so a regular file is needed"),
        (("{}/no*.csv",), "--data {}/no*.csv: no file has such a name"),
        (("{}/a.csv", "{}/a.csv"), "--data {}/a.csv: is given twice"),
        (("{}",), "{}: is a directory, not a file of clicks; name its files"),
        (("{}/absent",), "{}/absent: no such file"),
    ],
)
def test_files_that_are_not_there(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    (tmp_path / "a.csv").write_bytes(HEAD + BODY)
    named = tuple(name.format(tmp_path) for name in files)
    with pytest.raises(DataError) as error:
        open_source(DataOptions(files=named, **CHOSEN))
    assert str(error.value).startswith(message.format(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "ab"}, "--delimiter is 'ab'; it must be one ASCII character"),
        ({"list_separator": '"'}, "--list-separator is '\"'; it must be one ASCII character"),
        ({"delimiter": ";", "list_separator": ";"}, "--list-separator and --delimiter are both"),
        ({"dense_transform": "sqrt"}, "--dense-transform 'sqrt' is not one of auto, log, standard"),
        ({"dense": ("a",)}, "--dense is given without --categorical"),
        ({"files": (), "header": False}, "--header, --delimiter and --list-separator need --data"),
        ({"files": (), "delimiter": ";"}, "--header, --delimiter and --list-separator need"),
        ({"files": (), "list_separator": ";"}, "--header, --delimiter and --list-separator need"),
        ({"files": (), "label": "a"}, "--label, --dense and --categorical need --data"),
    ],
)
def test_bad_data_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        DataOptions(**{"files": ("a.csv",), **options})
    assert str(error.value).startswith(message)
