"""Replacing a file: whole or not at all, with its permissions, in its own folder, no leftovers."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from file_facts import mode, names
from interrupts import Interrupt

from mpembed._files import leftovers, replacement, targets
from mpembed._files.replacement import ReplacementFile, write_file
from mpembed._files.targets import check_place, is_special


def test_a_commit_replaces_and_a_discard_does_not(target: Path) -> None:
    new = ReplacementFile(target)
    new.seek(3)
    assert new.write(memoryview(b"new")) == 3
    assert new.write(b"") == 0
    new.seek(0)
    new.write(b"the")
    assert target.read_bytes() == b"old"
    new.commit()
    new.discard()  # of no effect
    assert target.read_bytes() == b"thenew"
    other = ReplacementFile(target)
    other.write(b"other")
    other.discard()
    other.discard()
    assert target.read_bytes() == b"thenew"
    assert names(target.parent) == ["file"]


def test_an_exception_discards(target: Path) -> None:
    def interrupted() -> None:
        with ReplacementFile(target) as new:
            new.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["file"]


def test_nothing_stays_open(target: Path) -> None:
    """Descriptors are the lowest that are free: a leak would raise the next one."""
    first = os.dup(0)
    os.close(first)
    ReplacementFile(target).discard()
    ReplacementFile(target).commit()
    with pytest.raises(OSError, match="no directory"):
        ReplacementFile(target.parent / "no" / "file")
    with pytest.raises(IsADirectoryError):
        ReplacementFile(target.parent)
    again = os.dup(0)
    os.close(again)
    assert again == first


def test_one_that_is_forgotten_is_discarded(target: Path) -> None:
    new = ReplacementFile(target)
    assert len(names(target.parent)) == 2
    del new
    gc.collect()
    assert names(target.parent) == ["file"]


def test_any_thread_may_commit(target: Path) -> None:
    new = ReplacementFile(target)
    new.write(b"new")
    thread = threading.Thread(target=new.commit)
    thread.start()
    thread.join()
    assert target.read_bytes() == b"new"


def test_an_interrupt_at_any_line_leaves_a_whole_file_and_no_other(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # takes time
    for line in itertools.count(1):
        target.write_bytes(b"old")
        target.with_name(leftovers.temporary_name("file")).touch()
        interrupt = Interrupt(line, files=("leftovers.py", "replacement.py", "targets.py"))
        interrupt.run(lambda: write_file(target, b"new"))
        assert target.read_bytes() in (b"old", b"new")
        write_file(target, b"next")
        assert target.read_bytes() == b"next"
        assert names(target.parent) == ["file"], line
        if not interrupt.happened:
            break
    assert line > 50


# ---- permissions --------------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("before", "after"), [(0o666, 0o666), (0o600, 0o600), (0o400, 0o400), (0o6755, 0o755)]
)
def test_the_permissions_stay_and_nothing_else_does(target: Path, before: int, after: int) -> None:
    target.chmod(before)
    new = ReplacementFile(target)
    assert mode(target.with_name(new._temporary)) == after  # before there is anything to read
    new.commit()
    assert mode(target) == after


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("before", "after"), [(0o666, 0o640), (0o604, 0o600)])
def test_a_file_of_another_user_does_not_open_the_new_one_to_more(
    target: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    target.chmod(before)
    real = targets.replaceable

    def of_another(path: Path, folder: int) -> os.stat_result | None:
        old = real(path, folder)
        assert old is not None
        fields = list(old)
        fields[stat.ST_UID] += 1
        return os.stat_result(fields)

    monkeypatch.setattr(replacement, "replaceable", of_another)
    write_file(target, b"new")
    assert mode(target) == after


# ---- places -------------------------------------------------------------------------------------


def test_a_folder_that_is_swapped_does_not_redirect(target: Path) -> None:
    folder, moved = target.parent, target.parent.with_name("moved")
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    new = ReplacementFile(target)
    new.write(b"new")
    folder.rename(moved)
    folder.symlink_to(elsewhere)
    new.commit()
    assert (moved / "file").read_bytes() == b"new"
    assert (elsewhere / "file").read_text() == "kept"
    assert names(elsewhere) == names(moved) == ["file"]


def test_a_link_to_something_else_than_a_file_is_refused(target: Path) -> None:
    pipe, link = target.with_name("pipe"), target.with_name("link")
    os.mkfifo(pipe)
    for place, number in ((pipe, errno.EINVAL), (target.parent, errno.EISDIR)):
        link.symlink_to(place)
        with pytest.raises(OSError, match="nothing was saved") as error:
            ReplacementFile(link)
        assert (error.value.errno, error.value.filename) == (number, str(link))
        assert link.is_symlink()
        link.unlink()


DEVICE = """
import sys
from mpembed._files.replacement import ReplacementFile, write_file
from mpembed._files.targets import check_place
try:
    ReplacementFile("/dev/stdout").discard()
except OSError as error:
    print(error, flush=True)
check_place("/dev/stdout")
write_file("/dev/stdout", b"written")
"""


@pytest.mark.parametrize("output", ["file", "pipe"])
def test_the_links_of_dev_are_not_replaced(tmp_path: Path, output: str) -> None:
    """Nor by the superuser, who could: `--json /dev/stdout > file` writes to the output."""
    before = Path("/dev/stdout").readlink()
    with (tmp_path / "out").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", DEVICE],
            cwd=tmp_path,
            stdout=file if output == "file" else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 0, done.stderr
    assert Path("/dev/stdout").readlink() == before
    text = (tmp_path / "out").read_bytes() if output == "file" else done.stdout
    assert text.endswith(b"written")
    assert output == "file" or b"is not a regular file" in text


@pytest.mark.parametrize("end", ["/", "//", "/."])
@pytest.mark.parametrize(
    "write", [ReplacementFile, check_place, lambda path: write_file(path, b"")]
)
def test_a_path_that_ends_as_a_folder_is_no_file(tmp_path: Path, write: Any, end: str) -> None:
    for name in ("new", "old"):
        path = f"{tmp_path}/{name}"
        if name == "old":
            Path(path).write_bytes(b"old")
        with pytest.raises(IsADirectoryError, match="ends as a folder does") as caught:
            write(path + end)
        assert caught.value.filename == path + end
        assert repr(path) in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["old"]


def test_a_place_is_checked_before_anything_is_done(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = target.parent
    assert not is_special(target)
    check_place(target)
    check_place(folder / "new")
    wrong: dict[Path, type[OSError]] = {
        folder: IsADirectoryError,
        folder / "no" / "file": FileNotFoundError,
        target / "file": NotADirectoryError,
        folder / ("x" * 300): OSError,
    }
    for path, kind in wrong.items():
        for call in (check_place, ReplacementFile):
            with pytest.raises(kind) as error:
                call(path)
            assert error.value.filename == str(path)
            assert error.value.errno
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="no new file in"):
        check_place(target)
    assert names(folder) == ["file"]
