"""Calls of the system and allocations that fail, each in turn: nothing is lost, and errors tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import faults
import pytest

PROGRAM = Path(__file__).with_name("fault_saves.py")
# What a save can do without: what it finds out about dead saves, and closing what is synced.
HARMLESS = {("open", 2), ("fstat", 3), ("flock", 1), ("flock", 2), ("unlink", 1)}
HARMLESS |= {("dup", 1), ("close", 1), ("close", 3), ("close", 4)}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="faults: the preloaded library is for glibc"
)


@pytest.fixture(params=[7, pytest.param(1, marks=pytest.mark.exhaustive)])
def stride(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.build(tmp_path_factory.mktemp("faults"))


def outcomes(library: Path, part: str, folder: Path, stride: int) -> list[dict[str, Any]]:
    """Return what came of each fault of a part."""
    done = faults.call(library, PROGRAM, part, folder, stride)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert found
    return found


def assert_nothing_lost(case: dict[str, Any]) -> None:
    """Check what was found after a save: all of one step, nothing else, and training goes on."""
    assert case["left_then"] == 0, case
    assert case["trains_on"], case
    assert case["mode"] == 0o646, case


def test_each_call_of_a_save_that_fails(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "save_faults", tmp_path, stride)
    for case in found:
        assert_nothing_lost(case)
        assert case["left"] == 0, case
        name = case["function"], case["nth"]
        if name in HARMLESS:
            assert (case["error"], case["holds"]) == (None, "new"), case
            continue
        assert case["errno"] == case["number"], case
        assert case["file"] == str(tmp_path / "file"), case
        in_place = name == ("fsync", 2)  # that of the folder
        assert case["holds"] == ("new" if in_place else "old"), case
        assert ("is in place" in case["text"]) == in_place, case
    happened = {(case["function"], case["nth"]) for case in found}
    assert happened >= HARMLESS | {("fsync", 2), ("rename", 1), ("dup", 2), ("fchmod", 1)}
    writes = {(case["nth"], case["action"]) for case in found if case["function"] == "write"}
    assert len(writes) > 40 / stride


def test_a_kill_before_each_call_of_a_save(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "save_kills", tmp_path, stride)
    for case in found:
        assert_nothing_lost(case)
        assert case["holds"] in ("old", "new"), case
    assert (
        sum(case["left"] for case in found) > 30 / stride
    )  # temporary files that the next save removed
    assert {"write", "fsync", "close", "rename"} <= {case["function"] for case in found}


def test_each_allocation_of_a_save_that_fails(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "save_memory", tmp_path, stride)
    for case in found:
        assert_nothing_lost(case)
        assert case["left"] == 0, case
        assert (case["error"], case["holds"]) in (("MemoryError", "old"), (None, "new")), case
    assert sum(case["error"] is not None for case in found) > 20 / stride


def test_a_limit_of_memory_does_not_end_a_save(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "save_limits", tmp_path, stride)
    for case in found:
        assert case["status"] in (0, 1), case  # not killed, not aborted
        assert case["there"] == (case["status"] == 0), case
        assert case["right"], case
        assert case["left"] == 0, case
    assert {case["status"] for case in found} == {0, 1}


def test_each_call_of_a_load_that_fails(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "load_faults", tmp_path, stride)
    for case in found:
        assert case["right"], case
        harmless = case["function"] == "close" or (
            case["function"] == "read" and case["action"] == faults.SHORT  # the rest is read again
        )
        assert (case["error"] is None) == harmless, case
        if not harmless:
            assert (case["errno"], case["file"]) == (case["number"], str(tmp_path / "file")), case
    happened = {(case["function"], case["action"]) for case in found}
    assert happened >= {("open", faults.FAIL), ("fstat", faults.FAIL), ("close", faults.FAIL)}
    assert happened >= {("read", faults.FAIL), ("read", faults.SHORT)}


def test_each_allocation_of_a_load_that_fails(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "load_memory", tmp_path, stride)
    for case in found:
        assert_nothing_lost(case)
        assert case["holds"] == "old", case
        # NumPy's indexing forgets to say what was wrong.
        assert case["error"] == "MemoryError" or "without exception set" in case["text"], case
    assert sum(case["error"] is not None for case in found) > 10 / stride


def test_a_limit_of_memory_does_not_end_a_load(library: Path, tmp_path: Path, stride: int) -> None:
    found = outcomes(library, "load_limits", tmp_path, stride)
    assert {case["status"] for case in found} == {0, 1}  # not killed, not aborted
