"""Leftovers of dead writers are removed; what another process writes, or has put there, stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_facts import names

from mpembed._files import leftovers, replacement
from mpembed._files.replacement import ReplacementFile, write_file

DIES = """
import os, sys
from mpembed._files.replacement import ReplacementFile
files = [ReplacementFile(name) for name in sys.argv[1:]]
for file in files:
    file.write(b"half")
os.kill(os.getpid(), 9)
"""


def test_leftovers_of_the_dead_are_removed_and_no_others(target: Path) -> None:
    folder = target.parent
    other = folder / "other"
    died = subprocess.run([sys.executable, "-c", DIES, str(target), str(other)], cwd=folder)
    assert died.returncode == -9
    foreign = [".mpembed-0.tmp", ".tmpAbCd12", "file.tmp"]
    for name in foreign:
        (folder / name).touch()
    alive = ReplacementFile(target)
    of_other = [n for n in names(folder) if n.startswith(leftovers._beginning("other"))]
    of_target = [n for n in names(folder) if n.startswith(leftovers._beginning("file"))]
    assert len(of_other) == 1
    assert of_target == [alive._temporary]
    ReplacementFile(target).commit()  # the one of this process is in use and stays
    alive.write(b"last")
    alive.commit()
    assert target.read_bytes() == b"last"
    assert names(folder) == sorted([*of_other, "file", *foreign])


@pytest.fixture
def ordinary_user(target: Path) -> Iterator[int]:
    """Be a user whom permissions bind; return the target's folder, open."""
    folder, user = os.open(target.parent, os.O_RDONLY), os.geteuid()
    if user == 0:
        os.chown(target.parent, 65534, -1)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    os.close(folder)


@pytest.mark.parametrize("mode", [0o200, 0o400, 0o600])
def test_leftovers_have_the_mode_of_their_target(mode: int, ordinary_user: int) -> None:
    leftover = leftovers.temporary_name("file")
    os.close(os.open(leftover, os.O_WRONLY | os.O_CREAT, mode, dir_fd=ordinary_user))
    locked = leftovers.temporary_name("file")
    writer = os.open(locked, os.O_WRONLY | os.O_CREAT, mode, dir_fd=ordinary_user)
    assert leftovers.lock(writer)
    leftovers.remove("file", ordinary_user)
    assert leftover not in os.listdir(ordinary_user)
    assert locked in os.listdir(ordinary_user)
    os.close(writer)
    leftovers.remove("file", ordinary_user)
    assert os.listdir(ordinary_user) == ["file"]


LIVES = """
import sys
from mpembed._files.replacement import ReplacementFile
new = ReplacementFile(sys.argv[1])
new.write(b"of the other process")
print("ready", flush=True)
sys.stdin.readline()
new.commit()
"""


def test_a_file_that_another_process_writes_stays(target: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LIVES, str(target)],
        cwd=target.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        write_file(target, b"of this process")
        assert target.read_bytes() == b"of this process"
        process.communicate("\n")
    assert process.returncode == 0
    assert target.read_bytes() == b"of the other process"
    assert names(target.parent) == ["file"]


def test_a_leftover_that_is_no_file_is_not_touched(target: Path) -> None:
    """Its name can be known, so anything may have been put there."""
    precious = target.with_name("precious")
    precious.write_text("kept")
    planted = [target.with_name(leftovers.temporary_name("file")) for _ in range(3)]
    planted[0].symlink_to(precious)
    planted[1].mkdir()
    os.mkfifo(planted[2])
    write_file(target, b"new")
    assert precious.read_text() == "kept"
    assert names(target.parent) == sorted(["file", "precious", *(p.name for p in planted)])


def test_without_locks_files_are_written_and_no_leftover_is_removed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = target.with_name(leftovers.temporary_name("file"))
    leftover.touch()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", refuse)
        write_file(target, b"new")
    assert names(target.parent) == sorted(["file", leftover.name])
    write_file(target, b"newer")
    assert names(target.parent) == ["file"]


@pytest.mark.parametrize("times", [1, 2, replacement._TRIES])
def test_a_new_file_taken_for_a_leftover_is_given_up(
    target: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Another save may look at it before it is locked."""
    real = leftovers.lock
    taken: list[str] = []

    def late(file: int) -> bool:
        if len(taken) < times:
            (name,) = (n for n in names(target.parent) if n != "file")
            target.with_name(name).unlink()
            taken.append(name)
        return real(file)

    monkeypatch.setattr(leftovers, "lock", late)
    if times < replacement._TRIES:
        write_file(target, b"new")
        assert target.read_bytes() == b"new"
    else:
        with pytest.raises(OSError, match="another process locks each new file"):
            write_file(target, b"new")
    assert len(set(taken)) == times
    assert names(target.parent) == ["file"]


FORK = """
import os, sys
from mpembed._files.replacement import ReplacementFile
new = ReplacementFile(sys.argv[1])
new.write(b"new")
child = os.fork()
if child == 0:
    try:
        new.commit()
    except RuntimeError as error:
        print(error, flush=True)
    new.discard()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
new.commit()
"""


def test_a_forked_child_leaves_its_parents_file(target: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(target)],
        cwd=target.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is being written by the process that forked this one" in done.stdout
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["file"]
