"""The checks of what is published find what they are for; `.ci/run` puts the real files to them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from mpembed_dist import __main__ as command
from mpembed_dist import sdist, wheel

B = "mpembed/_bindings"
TREE = {
    "pyproject.toml": b'[project]\nversion = "1.2"\n',
    "mpembed/__init__.py": b"x = 1\n",
    "mpembed/py.typed": b"",
    f"{B}/kernels.pyi": b"",
    f"{B}/kernels.pyx": b"",
    f"{B}/cuda.pyx": b"",
    "kernels/cuda/own_kernels.cuh": b"",
    "kernels/cuda/update.cu": b"",
}
INFO = "mpembed-1.2.dist-info"
WHEEL = {name: data for name, data in TREE.items() if name[:7] == "mpembed" and name[-1] != "x"} | {
    f"{B}/kernels.cpython-313-x86_64-linux-gnu.so": b"\x7fELF",
    "mpembed/lib/libmpembed.so": b"\x7fELF",
    "mpembed/include/mpembed/api.h": b"",
    "mpembed/kernels/cuda/own_kernels.cuh": b"",
    f"{INFO}/METADATA": b"Name: mpembed\nVersion: 1.2\nLicense-Expression: Apache-2.0\n",
    f"{INFO}/WHEEL": b"Root-Is-Purelib: false\n",
    f"{INFO}/entry_points.txt": b"[console_scripts]\nmpembed = mpembed.__main__:main\n",
    f"{INFO}/licenses/LICENSE": b"",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a project."""
    for name, data in TREE.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "project"


# ---- source archives ----------------------------------------------------------------------------


def problems_of_sdist(root: Path, files: dict[str, bytes], link: str | None = None) -> list[str]:
    archive = root.parent / "mpembed-1.2.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name if name[0] == "." else f"mpembed-1.2/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if link is not None:
            member = tarfile.TarInfo(f"mpembed-1.2/{link}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return sdist.problems(archive, root, TREE)


def test_a_whole_source_archive(root: Path) -> None:
    added = {"PKG-INFO": b"", "setup.cfg": b"", "mpembed.egg-info/SOURCES.txt": b""}
    assert problems_of_sdist(root, TREE | added) == []


def test_what_is_wrong_with_a_source_archive(root: Path) -> None:
    files = TREE | {f"{B}/kernels.pyx": b"old", "a.out": b"", "../evil": b""}
    del files["mpembed/py.typed"]
    assert problems_of_sdist(root, files, link="mpembed/link") == [
        "outside of mpembed-1.2: ../evil",
        "neither a file nor a folder: mpembed/link",
        "missing: mpembed/py.typed",
        "not in the repository: a.out",
        "differs from the repository's: mpembed/_bindings/kernels.pyx",
    ]


def test_tracked_are_the_files_that_git_knows_and_that_are_there(root: Path) -> None:
    if subprocess.run(["git", "-C", root, "init", "-q"], capture_output=True).returncode:
        pytest.skip("git does not work here")
    (root / "gone ä.py").touch()
    subprocess.run(["git", "-C", root, "add", "pyproject.toml", "gone ä.py"], check=True)
    assert sdist.tracked(root) == ["gone ä.py", "pyproject.toml"]
    (root / "gone ä.py").unlink()
    assert sdist.tracked(root) == ["pyproject.toml"]


# ---- wheels -------------------------------------------------------------------------------------


def problems_of_wheel(root: Path, files: dict[str, bytes], *paths: str) -> list[str]:
    archive = root.parent / "mpembed-1.2-cp313-cp313-linux_x86_64.whl"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
    return wheel.problems(archive, root, "1.2", paths)


def test_a_good_wheel(root: Path) -> None:
    assert problems_of_wheel(root, WHEEL, "/build/folder") == []
    with_cuda = {f"{B}/cuda.abi3.so": b"\0" * (wheel.LIMITS["cpu"] + 1)}
    assert problems_of_wheel(root, WHEEL | with_cuda) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"tests/test_a.py": b""}, "out of place: tests/test_a.py"),
        ({"mpembed.libs/libgomp.so": b""}, "out of place: mpembed.libs/libgomp.so"),
        (
            {f"{B}/kernels.pyx": b""},
            f"is for building only: {B}/kernels.pyx",
        ),
        (
            {f"{B}/kernels.new": b""},
            f"is for building only: {B}/kernels.new",
        ),
        (
            {"mpembed/kernels/cuda/update.cu": b""},
            "is for building only: mpembed/kernels/cuda/update.cu",
        ),
        (
            {"mpembed/kernels/cuda/own_kernels.cuh": b"old"},
            "missing, or not the source's: mpembed/kernels/cuda/own_kernels.cuh",
        ),
        ({"mpembed/py.typed": None}, "missing: mpembed/py.typed"),
        ({"mpembed/__init__.py": b"x = 2\n"}, "differs from the source: mpembed/__init__.py"),
        ({"mpembed/_old.py": b""}, "has no source: mpembed/_old.py"),
        ({"mpembed/_old.so": b""}, "compiled from nothing: _old"),
        (
            {f"{B}/kernels.cpython-313-x86_64-linux-gnu.so": None},
            "not compiled: _bindings/kernels",
        ),
        ({"mpembed/a.h": b"..of /build/folder/a.h.."}, "mpembed/a.h names /build/folder"),
        ({f"{INFO}/WHEEL": b"Root-Is-Purelib: true\n"}, "has no line 'Root-Is-Purelib: false'"),
        ({f"{INFO}/licenses/LICENSE": None}, f"missing: {INFO}/licenses/LICENSE"),
        ({"mpembed/a.h": b"\0" * (wheel.LIMITS["cpu"] + 1)}, "a cpu wheel of 5.0 MB, more than"),
        (
            {f"{B}/cuda.so": b"\0" * (wheel.LIMITS["cuda"] + 1)},
            "a cuda wheel of 40.0 MB, more",
        ),
    ],
)
def test_what_is_wrong_with_a_wheel(
    root: Path, changed: dict[str, bytes | None], problem: str
) -> None:
    files = {name: data for name, data in (WHEEL | changed).items() if data is not None}
    (found,) = problems_of_wheel(root, files, "/build/folder")
    assert problem in found


def test_another_version_is_out_of_place(root: Path) -> None:
    files = {name.replace("1.2", "1.3"): data for name, data in WHEEL.items()}
    found = problems_of_wheel(root, files)
    assert "out of place: mpembed-1.3.dist-info/METADATA" in found
    assert f"missing: {INFO}/METADATA" in found


# ---- the command --------------------------------------------------------------------------------


def test_the_command_prints_and_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "ROOT", root)
    problems_of_wheel(root, WHEEL)
    archive = str(root.parent / "mpembed-1.2-cp313-cp313-linux_x86_64.whl")
    assert command.main([archive]) == 0
    assert capsys.readouterr().out.startswith("mpembed-1.2-cp313-cp313-linux_x86_64.whl  0.00 MB  ")
    problems_of_wheel(root, WHEEL | {"mpembed/a.h": b"/my/folder"})
    assert command.main([archive, "--path", "/my/folder"]) == 1
    assert "  mpembed/a.h names /my/folder\n" in capsys.readouterr().out
    other = root / "mpembed-1.1.tar.gz"
    other.touch()
    assert command.main([str(other)]) == 1
    assert "neither a source archive nor a wheel of mpembed 1.2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([archive, str(root / "gone.whl")])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "gone.whl is not a file" in printed.err
