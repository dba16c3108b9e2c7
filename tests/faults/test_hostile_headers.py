"""Headers of files made to do harm: holes, overlaps, wrong types, names twice; other texts."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import CheckpointFile, refused_by_python, written


def changed_entry(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["stats"][field] = value

    return change


def overlap(header: dict[str, Any]) -> None:
    """Two arrays of the same size in one place: all of the file's bytes but some are covered."""
    header["table.t.int6.exp_avg"]["data_offsets"] = header["table.t.int5.exp_avg"]["data_offsets"]


def swap(header: dict[str, Any]) -> None:
    """The same bytes, under each other's names: no damage to the header itself."""
    one, other = header["table.t.int6.exp_avg"], header["table.t.int5.exp_avg"]
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlap": overlap,
    "missing array": lambda header: header.pop("stats"),
    "missing field": lambda header: header["stats"].pop("shape"),
    "one more field": changed_entry("more", 1),
    "unknown type": changed_entry("dtype", "I63"),
    "type of another width": changed_entry("dtype", "I32"),
    "type that is no text": changed_entry("dtype", ["I64"]),
    "negative extents": changed_entry("shape", [-9, -10]),
    "extents that overflow": changed_entry("shape", [2**62, 2**62]),
    "extents that are no numbers": changed_entry("shape", [True, 1.0]),
    "shape that is no list": changed_entry("shape", 3),
    "three offsets": changed_entry("data_offsets", [0, 1, 2]),
    "offsets the wrong way": changed_entry("data_offsets", [8, 0]),
    "offsets behind the end": changed_entry("data_offsets", [2**62, 2**62]),
    "offsets out of all range": changed_entry("data_offsets", [0, 2**64]),
    "array that is no object": lambda header: header.update(stats=[]),
    "metadata that is no text": lambda header: header["__metadata__"].update(more=1),
    "metadata that is a list": lambda header: header.update(__metadata__=[]),
    "no metadata": lambda header: header.pop("__metadata__"),
}


@pytest.mark.parametrize("change", HEADERS)
def test_headers(parts: CheckpointFile, tmp_path: Path, reader: Any, change: str) -> None:
    header = parts.header()
    HEADERS[change](header)
    found = reader(written(tmp_path / "file", parts.with_header(header)))
    assert found is not None
    assert found.startswith("FILE: ")


def test_arrays_that_were_swapped(parts: CheckpointFile, tmp_path: Path) -> None:
    header = parts.header()
    swap(header)
    found = refused_by_python(written(tmp_path / "file", parts.with_header(header)))
    assert "is damaged (checksum)" in str(found)


def test_bytes_that_no_array_has(parts: CheckpointFile, tmp_path: Path, reader: Any) -> None:
    """Before, between and behind the arrays."""
    header, size = parts.header(), len(parts.data())
    path = tmp_path / "file"
    assert reader(written(path, parts.with_header(header, parts.data() + bytes(8))))
    assert reader(written(path, parts.with_header(header, parts.data()[:-8])))
    moved = copy.deepcopy(header)
    for name, entry in moved.items():
        if name != "__metadata__":
            entry["data_offsets"] = [n + 8 for n in entry["data_offsets"]]
    assert reader(written(path, parts.with_header(moved, bytes(8) + parts.data())))
    last = max(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1]
    )
    begin, end = header[last]["data_offsets"]
    assert end == size
    header[last]["data_offsets"] = [begin + 8, end + 8]
    gap = parts.data()[:begin] + bytes(8) + parts.data()[begin:]
    assert reader(written(path, parts.with_header(header, gap)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " * 64,
        "[]",
        "{",
        "3",
        '{"a": NaN}',
        '{"__metadata__": {}, "__metadata__": {}}',
        '{"\\ud800": {}}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": 1' + "0" * 5000 + "}",
        '{"a": "\x01"}',
        "\ufeff{}",
    ],
)
def test_texts_that_are_no_header(
    parts: CheckpointFile, tmp_path: Path, reader: Any, text: str
) -> None:
    found = reader(written(tmp_path / "file", parts.with_header(text)))
    assert found is not None
    assert "damaged" in found


def test_a_name_that_comes_twice(parts: CheckpointFile, tmp_path: Path, reader: Any) -> None:
    """In the header, in the manifest, and in a part of it."""
    path, header = tmp_path / "file", parts.header()
    text = json.dumps(header)
    manifest = json.dumps(parts.whole_manifest())
    twice = text[:-1] + ', "stats": ' + json.dumps(header["stats"]) + "}"
    assert "JSON" in reader(written(path, parts.with_header(twice)))
    for old in ('"step": ', '"placement": ', '"policy": '):
        assert old in manifest
        doubled = manifest.replace(old, f"{old}1, {old}", 1)
        assert "not valid" in reader(written(path, parts.content(doubled)))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 2000])
def test_lengths_of_headers(tmp_path: Path, reader: Any, length: int) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{}")
        file.truncate(150_000_000 if length == 100_000_001 else 1000)  # sparse
    assert "length of its header" in reader(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file(tmp_path: Path, reader: Any, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert "not a regular file" in reader(path)
