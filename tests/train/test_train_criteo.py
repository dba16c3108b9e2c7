"""Reading click logs: what is read, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from click_files import criteo_lines

from mpembed.train.data import lines as text_lines
from mpembed.train.data.clicks import MISSING_CAT, MISSING_INT, Clicks, DataError
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.dataset import Dataset
from mpembed.train.data.synthetic import generate

GOOD = ["1", *[str(i) for i in range(13)], *[f"{i:08x}" for i in range(26)]]


def line(**cells: str) -> str:
    """Make a good line but for the cells given by number, as in ``c5="x"``."""
    values = list(GOOD)
    for key, value in cells.items():
        values[int(key[1:])] = value
    return "\t".join(values)


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    text = (end.join(lines) + end).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(path: Path, max_rows: int | None = None) -> Clicks:
    file = CriteoFile(path, max_rows)
    chunks = list(file.chunks(file.rows))
    assert all(len(chunk) for chunk in chunks)
    return Clicks(
        np.concatenate([c.labels for c in chunks]),
        np.concatenate([c.dense for c in chunks], axis=1),
        np.concatenate([c.cats for c in chunks], axis=1),
    )


@pytest.mark.parametrize("name", ["clicks.txt", "clicks.txt.gz"])
@pytest.mark.parametrize("block", [40_000, 4 << 20])
def test_reads_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", block)
    clicks = generate(0, 1500)
    path = write(tmp_path / name, criteo_lines(clicks))
    for rows in (1500, 700):
        got = read(path, None if rows == 1500 else rows)
        np.testing.assert_array_equal(got.labels, clicks.labels[:rows])
        np.testing.assert_array_equal(got.dense, clicks.dense[:, :rows])
        np.testing.assert_array_equal(got.cats, clicks.cats[:, :rows])


def test_gzip_is_told_by_its_bytes_and_may_have_several_members(tmp_path: Path) -> None:
    path = tmp_path / "clicks.txt"
    member = gzip.compress((line() + "\n").encode())
    path.write_bytes(member + member)
    assert len(read(path)) == 2


def test_line_ends_case_and_short_values(tmp_path: Path) -> None:
    lines = [line(c14="ABCDEF01", c15="f", c16=""), line(c14="abcdef01", c1="", c2="-3")]
    clicks = read(write(tmp_path / "crlf.txt", lines, "\r\n"))
    assert clicks.cats[0].tolist() == [0xABCDEF01, 0xABCDEF01]
    assert clicks.cats[1].tolist() == [15, 1]
    assert clicks.cats[2].tolist() == [MISSING_CAT, 2]
    assert clicks.dense[0].tolist() == [0, MISSING_INT]
    assert clicks.dense[1].tolist() == [1, -3]
    path = tmp_path / "no_last_newline.txt"
    path.write_text("\n".join(lines))
    assert len(read(path)) == 2


BAD = {
    "39 columns": ("\t".join(GOOD[:-1]), "39 columns, 40 expected"),
    "41 columns": (line() + "\t", "41 columns, 40 expected"),
    "blank": ("", "1 columns, 40 expected"),
    "label": (line(c0="2"), "the label is '2'"),
    "no label": (line(c0=""), "the label is ''"),
    "label text": (line(c0="yes"), "the label is 'yes'"),
    "integer": (line(c3="1.5"), "integer column 3 holds '1.5'"),
    "integer text": (line(c13="ab"), "integer column 13 holds 'ab'"),
    "huge integer": (line(c1="9" * 30), "integer column 1 holds '999"),
    "categorical": (line(c14="0123456g"), "categorical column 1 holds '0123456g'"),
    "long categorical": (line(c39="012345678"), "categorical column 26 holds '012345678'"),
    "not utf-8": (line(c20="\udcff"), r"categorical column 7 holds '\xff'"),
    "quoted": (line(c20='"00000001"'), "categorical column 7 holds '\"00000001\"'"),
}


@pytest.mark.parametrize("name", ["clicks.txt", "clicks.txt.gz"])
@pytest.mark.parametrize("number", [1, 2, 57, 60])
@pytest.mark.parametrize("kind", BAD)
def test_bad_lines_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, name: str
) -> None:
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 4096)
    bad, message = BAD[kind]
    lines = [line()] * 60
    lines[number - 1] = bad
    text = "".join(text + "\n" for text in lines).encode("utf-8", "surrogateescape")
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    with pytest.raises(DataError) as error:
        Dataset(CriteoFile(path))
    assert str(error.value).startswith(f"{path}: line {number}: {message}")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: no such file"):
        CriteoFile(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="is a directory"):
        CriteoFile(tmp_path)


@pytest.mark.parametrize("name", ["clicks.txt", "clicks.txt.gz"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if path.suffix == ".gz" else b"")
    with pytest.raises(DataError, match=r"clicks[^:]*: the file is empty"):
        CriteoFile(path)


def test_file_of_no_bytes_named_gz(tmp_path: Path) -> None:
    path = tmp_path / "clicks.gz"
    path.touch()
    with pytest.raises(DataError, match=": not gzip data"):
        CriteoFile(path)


def test_not_gzip_though_named_so(tmp_path: Path) -> None:
    path = tmp_path / "clicks.gz"
    path.write_text(line() + "\n")
    with pytest.raises(DataError, match=r"clicks\.gz: not gzip data"):
        CriteoFile(path)


def incompressible(rows: int) -> bytes:
    return "\n".join(criteo_lines(generate(0, rows))).encode() + b"\n"


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.9999])
def test_truncated_gzip_names_the_line_where_it_ends(tmp_path: Path, keep: float) -> None:
    data = gzip.compress(incompressible(2000))
    path = tmp_path / "cut.txt.gz"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"line (\d+): the gzip data end too early") as error:
        CriteoFile(path)
    number = int(str(error.value).split("line ")[1].split(":")[0])
    assert number == pytest.approx(2000 * keep, rel=0.1)


def test_damaged_gzip(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(incompressible(2000)))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path = tmp_path / "damaged.txt.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.txt\.gz: line \d+: "):
        Dataset(CriteoFile(path))


def test_file_that_changes_after_it_was_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.txt", [line()] * 10)
    file = CriteoFile(path)
    write(path, [line()] * 4)
    with pytest.raises(DataError, match=r"line 5: the file ended, 10 lines were expected"):
        list(file.chunks(10))
