"""The source archive holds exactly the files that git tracks."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}
ADDED_FOLDER = "mpembed.egg-info"


def tracked(root: Path) -> list[str]:
    """Return the files that git tracks and that exist."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def problems(archive: Path, root: Path, names: Iterable[str]) -> list[str]:
    """Return what is wrong with an archive.

    Parameters
    ----------
    archive : Path
        A ``.tar.gz``.
    root : Path
        The project's folder.
    names : iterable of str
        The files it must hold, relative to `root`.
    """
    found, wrong = _read(archive)
    wanted = set(names)
    wrong += [f"missing: {name}" for name in sorted(wanted - found.keys())]
    for name in sorted(found.keys() - wanted - ADDED):
        if PurePosixPath(name).parts[0] != ADDED_FOLDER:
            wrong.append(f"not in the repository: {name}")
    for name in sorted(wanted & found.keys()):
        if found[name] != (root / name).read_bytes():
            wrong.append(f"differs from the repository's: {name}")
    return wrong


def _read(archive: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of an archive below its one folder, and what is wrong with its entries."""
    top = archive.name.removesuffix(".tar.gz")
    files: dict[str, bytes] = {}
    wrong: list[str] = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            first, _, rest = member.name.partition("/")
            data = tar.extractfile(member) if member.isfile() else None
            if first != top:
                wrong.append(f"outside of {top}: {member.name}")
            elif data is not None:
                files[rest] = data.read()
            elif not member.isdir():
                wrong.append(f"neither a file nor a folder: {rest}")
    return files, wrong
