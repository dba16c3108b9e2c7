"""The fuzz targets under the sanitizers, for a short time; CONTRIBUTING.md runs them longer.

A damaged checkpoint gives an error in C++, and any bytes a row that can be read and written again:
no access out of bounds, no undefined arithmetic.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fuzz_targets as targets
import pytest

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(sys.platform != "linux", reason="needs a sanitizer's runtime"),
]

PLANTED = """
#include "target.h"
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return %s ? 0 : -1;
}
"""
VIOLATED = "(FUZZ_HOLDS(size < 1 || data[0] != 'W'), true)"
BEYOND = "size > 0 && data[0] == 'W' && data[size] == 0"  # reads a byte too many


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return targets.named("checkpoint", folder)


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    return targets.named("rows", folder)


def fuzz(program: Path, inputs: Path, runs: int, seed: int) -> subprocess.CompletedProcess[str]:
    command = [str(program), f"-runs={runs}", f"-seed={seed}", str(inputs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=inputs.parent)


def counted(done: subprocess.CompletedProcess[str], name: str) -> int:
    """Return a number that a target prints at its end, where nothing was found."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(rf"^{name} (\d+)$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return int(found[1])


@pytest.mark.parametrize("seed", range(4))
def test_damaged_checkpoints(checkpoint: Path, seed: int, tmp_path: Path) -> None:
    inputs = targets.first_inputs("checkpoint", tmp_path)
    opened = counted(fuzz(checkpoint, inputs, 3000, seed), "opened")
    assert 60 < opened < 1500  # some damage is harmless, such as another seed


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_as_rows(rows: Path, seed: int, tmp_path: Path) -> None:
    inputs = targets.first_inputs("rows", tmp_path)
    assert counted(fuzz(rows, inputs, 100_000, seed), "storable") > 30_000


@pytest.mark.skipif(targets.LIBFUZZER, reason="libFuzzer finds faults by itself")
@pytest.mark.parametrize(
    ("fault", "report"), [(VIOLATED, "violated: size < 1"), (BEYOND, "heap-buffer-overflow")]
)
def test_faults_are_found_and_kept(folder: Path, fault: str, report: str, tmp_path: Path) -> None:
    """By the fuzzer that stands in for libFuzzer; the input it keeps shows the fault again."""
    source = tmp_path / "planted.cpp"
    source.write_text(PLANTED % fault)
    program = targets.build(source, folder / "planted", [])
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "first").write_bytes(b"ABC")
    found = fuzz(program, inputs, 100_000, 1)
    (kept,) = tmp_path.glob("crash-1-*")
    again = fuzz(program, kept, 0, 1)
    for done in (found, again):
        assert done.returncode != 0
        assert report in done.stderr


def test_wrong_options_and_no_inputs_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for words, message in ((["-jobs=2", tmp_path], "usage:"), ([tmp_path], "there are no inputs")):
        done = subprocess.run([checkpoint, *words], capture_output=True, text=True)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
