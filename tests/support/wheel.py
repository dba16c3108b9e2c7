"""The files of the package's wheel, alone in a folder: what C++ programs must do with."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import compilers
from folders import ROOT

import mpembed


def alone(folder: Path) -> Path:
    """Fill a folder, once, with what the wheel installs; return it.

    Where the package was installed from a wheel, its record says which files that are. Where it was
    installed in place, a wheel for the CPU is built, out of the objects that are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one of pytest-xdist's workers does it
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = folder / "installed"
        if not target.exists():
            fresh = folder / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            _fill(fresh)
            fresh.rename(target)
    return target


def installed_from_wheel() -> bool:
    """Whether the package that is tested lies where its record says."""
    distribution = importlib.metadata.distribution("mpembed")
    recorded = Path(str(distribution.locate_file("mpembed"))).resolve()
    return recorded == Path(mpembed.__file__).resolve().parent and recorded.parent != ROOT


def _fill(folder: Path) -> None:
    if not installed_from_wheel():
        _build(folder)
        return
    distribution = importlib.metadata.distribution("mpembed")
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:  # scripts; made since
            continue
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), folder / file)


def _build(folder: Path) -> None:
    needs = ("setuptools", "Cython")
    complete = all(importlib.util.find_spec(name) for name in needs)
    recent = complete and int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    how = ["--no-build-isolation"] if recent else []  # else pip fetches them
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *how, "--target", folder]
    environment = {**os.environ, "MPEMBED_CUDA": "0"}
    environment.pop("PYTHONPATH", None)  # where a path lies in it, pip takes that for installed
    compilers.run([*command, ROOT], timeout=1800, env=environment)
