"""A wheel holds the package, is small, and reveals nothing about the machine that built it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mpembed_build import sdk

MEGABYTE = 1_000_000
LIMITS = {"cpu": 5 * MEGABYTE, "cuda": 40 * MEGABYTE}
PACKAGE = "mpembed"
SHIPPED = {".py", ".pyi", ".typed"}  # suffixes copied from the package's source
SOURCES = {".pyx", ".pxd", ".pxi", ".cpp", ".cu", ".cuh", ".o", ".pyc", ".new", ".d"}
CUDA = "_bindings/cuda"


def problems(wheel: Path, root: Path, version: str, paths: Iterable[str]) -> list[str]:
    """Return what is wrong with a wheel.

    Parameters
    ----------
    wheel : Path
        A ``.whl``.
    root : Path
        The project's folder.
    version : str
        The version it must have.
    paths : iterable of str
        Folders of this machine that no file of the wheel may name.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
    wrong = [*_names(files, f"{PACKAGE}-{version}.dist-info"), *_package(files, root)]
    wrong += _metadata(files, version)
    for name, data in files.items():
        wrong += [f"{name} names {path}" for path in paths if path.encode() in data]
    kind = "cuda" if CUDA in modules(files) else "cpu"
    size = wheel.stat().st_size
    if size > LIMITS[kind]:
        limit = LIMITS[kind] / MEGABYTE
        wrong.append(f"a {kind} wheel of {size / MEGABYTE:.1f} MB, more than {limit:.0f} MB")
    return wrong


def modules(files: Iterable[str]) -> set[str]:
    """Return the compiled modules by their paths in the package, without the libraries."""
    pattern = re.compile(rf"{PACKAGE}/((?!lib/)(?:\w+/)*\w+)\.[\w.-]*(?:so|pyd)")
    return {match[1] for name in files if (match := pattern.fullmatch(name))}


def _names(files: Mapping[str, bytes], metadata: str) -> list[str]:
    """Return which files are out of place."""
    wrong = []
    for name in files:
        path = PurePosixPath(name)
        # mpembed.libs would hold bundled libraries; there must be none.
        if path.parts[0] not in (PACKAGE, metadata):
            wrong.append(f"out of place: {name}")
        elif path.suffix in SOURCES and not _is_kernel_header(path):
            wrong.append(f"is for building only: {name}")
    return wrong


def _is_kernel_header(path: PurePosixPath) -> bool:
    """Whether NVRTC needs a file where an optimizer of a user's own is compiled."""
    return path.suffix == ".cuh" and path.parts[:2] == (PACKAGE, "kernels")


def _package(files: Mapping[str, bytes], root: Path) -> list[str]:
    """Return which files of the package are missing, differ, or come from an older build."""
    wrong = []
    for path in sorted((root / PACKAGE).rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix not in SHIPPED or not path.is_file():
            continue
        if name not in files:
            wrong.append(f"missing: {name}")
        elif files[name] != path.read_bytes():
            wrong.append(f"differs from the source: {name}")
    for path in sdk.kernel_headers(root):
        if files.get(f"{PACKAGE}/{path.as_posix()}") != (root / path).read_bytes():
            wrong.append(f"missing, or not the source's: {PACKAGE}/{path.as_posix()}")
    for name in files:
        shipped = PurePosixPath(name).suffix in SHIPPED and name.startswith(f"{PACKAGE}/")
        if shipped and not (root / name).is_file():
            wrong.append(f"has no source: {name}")
    sources = (path.relative_to(root / PACKAGE) for path in (root / PACKAGE).rglob("*.pyx"))
    compiled, bindings = modules(files), {path.with_suffix("").as_posix() for path in sources}
    wrong += [f"not compiled: {name}" for name in sorted(bindings - compiled - {CUDA})]
    wrong += [f"compiled from nothing: {name}" for name in sorted(compiled - bindings)]
    return wrong


def _metadata(files: Mapping[str, bytes], version: str) -> list[str]:
    """Return what is wrong with the metadata."""
    folder = f"{PACKAGE}-{version}.dist-info"
    wrong = []
    expected = {
        "METADATA": (f"Name: {PACKAGE}", f"Version: {version}", "License-Expression: Apache-2.0"),
        "entry_points.txt": (f"{PACKAGE} = {PACKAGE}.__main__:main",),
        "WHEEL": ("Root-Is-Purelib: false",),
        "licenses/LICENSE": (),
    }
    for name, lines in expected.items():
        if f"{folder}/{name}" not in files:
            wrong.append(f"missing: {folder}/{name}")
            continue
        text = files[f"{folder}/{name}"].decode().splitlines()
        wrong += [f"{folder}/{name} has no line {line!r}" for line in lines if line not in text]
    return wrong
