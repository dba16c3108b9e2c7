"""One rule for a line of clicks: the fast reader and the exact one never disagree."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpembed.train.data.clicks import (
    MISSING_CAT,
    MISSING_INT,
    MISSING_LABEL,
    NUM_CATS,
    NUM_INTS,
    DataError,
)
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.criteo_lines import first_fault
from mpembed.train.data.criteo_parse import BadBlockError, parse_block
from mpembed.train.data.dataset import Dataset

GOOD = [b"1", *[b"%d" % i for i in range(NUM_INTS)], *[b"%08x" % i for i in range(NUM_CATS)]]


def line(column: int = 0, cell: bytes = b"1") -> bytes:
    return b"\t".join([*GOOD[:column], cell, *GOOD[column + 1 :]])


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(text + b"\n" for text in lines))
    return path


EDGES = [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64]
CELLS = st.one_of(
    st.text("0123456789abcdefABCDEF+-xX_. \t\r\0\"'", max_size=12).map(str.encode),
    st.from_regex(rb"[ +-]?0{0,30}(0x)?[0-9a-fA-F]{0,20} ?", fullmatch=True),
    st.sampled_from([*EDGES, *(-edge for edge in EDGES)]).map(lambda n: b"%d" % n),
    st.binary(max_size=4),
)
ROWS = st.tuples(
    st.sampled_from([0, 1, 7, 13, 14, 20, 39]), CELLS, st.sampled_from([b"\n", b"\n", b"\r\n"])
)


@given(
    st.lists(ROWS, min_size=1, max_size=4),
    st.sampled_from([b"", b"\n", b"\r\n", b"\r"]),
    st.booleans(),
)
def test_both_readers_take_the_same_lines_and_read_the_same_values(
    rows: list[tuple[int, bytes, bytes]], last: bytes, labels: bool
) -> None:
    ends = [*(end for _, _, end in rows[:-1]), last]
    lines = [line(c, cell) for c, cell, _ in rows]
    if not labels:
        lines = [text.split(b"\t", 1)[1] for text in lines]
    block = b"".join(text + end for text, end in zip(lines, ends, strict=True))
    texts = block.removesuffix(b"\n").split(b"\n")
    fault = first_fault(block, labels)
    try:
        clicks = parse_block(block, len(texts), labels)
    except BadBlockError:
        assert fault is not None
        return
    assert fault is None
    for row, text in enumerate(texts):
        cells = text.rstrip(b"\r").split(b"\t")
        assert clicks.labels[row] == (int(cells.pop(0)) if labels else MISSING_LABEL)
        ints = [int(cell) if cell else MISSING_INT for cell in cells[:NUM_INTS]]
        assert clicks.dense[:, row].tolist() == ints
        cats = [int(cell, 16) if cell else MISSING_CAT for cell in cells[NUM_INTS:]]
        assert clicks.cats[:, row].tolist() == cats


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (1, b"-9223372036854775808", "integer column 1 holds '-9223372036854775808'"),
        (2, b"0x10", "integer column 2 holds '0x10'"),
        (3, b" 7 ", "integer column 3 holds ' 7 '"),
        (13, b"+7", "integer column 13 holds '+7'"),
        (0, b"01", "the label is '01'"),
        (0, b"\xef\xbb\xbf1", r"the label is '\xef\xbb\xbf1'"),
        (5, b"9" * 5000, "integer column 5 holds '99999999"),
        (6, b"x" * 5000, "integer column 6 holds 'xxxxxxxx"),
        (39, b"ab\rcd", "a carriage return stands alone"),
    ],
)
def test_what_pyarrow_would_take_is_refused_by_line(
    tmp_path: Path, column: int, cell: bytes, message: str
) -> None:
    path = write(tmp_path / "clicks.txt", *[line()] * 20, line(column, cell), *[line()] * 20)
    with pytest.raises(DataError) as error:
        Dataset(CriteoFile(path))
    assert str(error.value).startswith(f"{path}: line 21: {message}")


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("empty", [b"", b"\r"])
@pytest.mark.parametrize("place", [0, 20, 40])
def test_an_empty_line_is_refused(tmp_path: Path, labels: bool, empty: bytes, place: int) -> None:
    good = line() if labels else line().split(b"\t", 1)[1]
    missing = (b"1" if labels else b"") + b"\t" * good.count(b"\t")  # of which all is missing
    lines = [good, missing] * 20
    path = write(tmp_path / "clicks.txt", *lines)
    (clicks,) = CriteoFile(path, labels=labels).chunks(40)
    assert (clicks.dense[:, 1] == MISSING_INT).all()
    assert (clicks.cats[:, 1] == MISSING_CAT).all()
    write(path, *lines[:place], empty, *lines[place:])
    with pytest.raises(DataError, match=f"line {place + 1}: 1 columns, {39 + labels} expected"):
        list(CriteoFile(path, labels=labels).chunks(41))


def test_integers_of_any_number_of_zeros_and_at_the_edges(tmp_path: Path) -> None:
    cells = [b"0" * 5000 + b"7", b"-0", b"9223372036854775807", b"-9223372036854775807"]
    file = CriteoFile(write(tmp_path / "clicks.txt", *[line(4, cell) for cell in cells]))
    (clicks,) = file.chunks(4)
    assert clicks.dense[3].tolist() == [7, 0, 2**63 - 1, -(2**63) + 1]


def test_lines_parted_by_carriage_returns_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clicks.txt"
    path.write_bytes(b"\r".join([line()] * 50))
    with pytest.raises(DataError, match="line 1: a carriage return stands alone"):
        CriteoFile(path)
    path.write_bytes(b"\n".join([line()] * 30 + [line() + b"\r" + line()] * 2 + [line()] * 30))
    with pytest.raises(DataError, match="line 31: a carriage return stands alone"):
        Dataset(CriteoFile(path))


@pytest.mark.parametrize("name", ["clicks.txt", "clicks.txt.gz"])
def test_nothing_after_the_first_rows_matters(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rng = np.random.default_rng(0)
    noise = [line(39, b"%08x" % n) for n in rng.integers(0, 2**32, 3000)]
    lines = [*noise[:200], b"not a click", *noise[200:]]
    text = b"".join(text + b"\n" for text in lines)
    if path.suffix == ".gz":
        data = gzip.compress(text)
        path.write_bytes(data[: len(data) * 3 // 4])
    else:
        path.write_bytes(text)
    for rows in (100, 200):
        data_set = Dataset(CriteoFile(path, rows))
        assert sum(len(block) for block in data_set.blocks(64)) == rows
    with pytest.raises(DataError, match="line 201: 1 columns"):
        Dataset(CriteoFile(path, 201))


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"pipe: is not a regular file"):
        CriteoFile(path)
    with pytest.raises(DataError, match=r"/dev/null: is not a regular file"):
        CriteoFile("/dev/null")
    reader, writer = os.pipe()  # what a shell's process substitution gives
    try:
        with pytest.raises(DataError, match=r"is not a regular file"):
            CriteoFile(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        CriteoFile(tmp_path / ("x" * 300))
