"""The variables that are read at import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
from folders import ROOT

VARIABLES = ("MPEMBED_ISA", "MPEMBED_NUM_THREADS")


def start(folder: Path, shown: str = "simd", **variables: str) -> subprocess.CompletedProcess[str]:
    removed = (*VARIABLES, "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in removed}
    return subprocess.run(
        [sys.executable, "-c", f"import mpembed; print(mpembed.info()[{shown!r}])"],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_an_unset_one(tmp_path: Path, name: str) -> None:
    unset, empty = start(tmp_path), start(tmp_path, **{name: ""})
    assert empty.returncode == 0, empty.stderr
    assert empty.stdout == unset.stdout


@pytest.mark.parametrize("name", VARIABLES)
def test_any_other_word_is_refused_by_name(tmp_path: Path, name: str) -> None:
    done = start(tmp_path, **{name: "fast"})
    assert done.returncode != 0
    assert f"ValueError: {name} must be" in done.stderr
    assert "'fast'" in done.stderr


def test_openmps_variable_sets_the_threads(tmp_path: Path) -> None:
    assert start(tmp_path, "threads", OMP_NUM_THREADS="3,2").stdout == "3\n"
    both = start(tmp_path, "threads", OMP_NUM_THREADS="3", MPEMBED_NUM_THREADS="5")
    assert both.stdout == "5\n"
    wrong = start(tmp_path, "threads", OMP_NUM_THREADS="three")
    assert wrong.stdout == start(tmp_path, "threads").stdout


def test_the_source_folder_says_what_it_is(tmp_path: Path) -> None:
    """Found first by Python that runs in a clone."""
    package = tmp_path / "mpembed"
    compiled = shutil.ignore_patterns(*(f"*{suffix}" for suffix in EXTENSION_SUFFIXES))
    shutil.copytree(ROOT / "mpembed", package, ignore=compiled)
    numpy = str(Path(np.__file__).parent.parent)
    command = [
        sys.executable,
        "-S",
        "-c",
        "import mpembed",
    ]  # without what an install in place adds
    env = {**os.environ, "PYTHONPATH": numpy}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: {package} holds mpembed's source and no compiled modules" in done.stderr
