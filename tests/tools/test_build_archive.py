"""The source archive's bytes follow from the files alone."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from mpembed_build import source_archive
from mpembed_build.settings import BuildError

FILES = {"p-1/a.py": b"a", "p-1/b.sh": b"#!/bin/sh\n", "p-1/Z/c": b""}


def pack(path: Path, names: list[str], mtime: float, owner: str, group_bits: int) -> None:
    """Make an archive as it comes from one machine or another."""
    with tarfile.open(path, "w:gz") as tar:
        folder = tarfile.TarInfo("p-1")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700 | group_bits, mtime
        tar.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname, member.uid = len(FILES[name]), mtime, owner, 7
            member.mode = (0o700 if name.endswith(".sh") else 0o600) | group_bits
            member.pax_headers = {"comment": owner}
            tar.addfile(member, io.BytesIO(FILES[name]))


def test_the_same_bytes_from_any_machine(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"
    pack(one, list(FILES), 1e9, "me", 0o044)
    pack(two, list(FILES)[::-1], 1.5e9 + 0.25, "you", 0o064)
    assert one.read_bytes() != two.read_bytes()
    for path in (one, two):
        source_archive.normalise(path, 1_700_000_000)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar.gz", "two.tar.gz"]


def test_nothing_but_names_contents_and_use_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.tar.gz"
    pack(path, list(FILES), 1e9, "me", 0o020)
    source_archive.normalise(path, None)
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
        for name, data in FILES.items():
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == data
    assert list(members) == ["p-1", "p-1/Z/c", "p-1/a.py", "p-1/b.sh"]
    assert [oct(member.mode) for member in members.values()] == ["0o755", "0o644", "0o644", "0o755"]
    for member in members.values():
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert member.mtime == 1e9
        assert member.pax_headers == {}


def test_the_epoch_is_a_number_or_nothing() -> None:
    assert source_archive.epoch({}) is None
    assert source_archive.epoch({"SOURCE_DATE_EPOCH": ""}) is None
    assert source_archive.epoch({"SOURCE_DATE_EPOCH": "17"}) == 17
    for text in ("-1", "1.5", "today", "१"):
        with pytest.raises(BuildError, match=f"SOURCE_DATE_EPOCH must be a number.*'{text}'"):
            source_archive.epoch({"SOURCE_DATE_EPOCH": text})
