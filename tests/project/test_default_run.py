"""What plain `pytest` leaves out is exhaustive, and every name of the registry stays in."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import drive
import kinds
import pairwise
import pytest
from folders import ROOT, TESTS

from mpembed import registry

BYTES = "tests/collection/test_collection_bytes.py"
TRAINING = "test_the_whole_registry"


def collected(*arguments: str, path: str = BYTES) -> list[str]:
    """Return the names of the tests that pytest would run."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.fixture(scope="module")
def default() -> list[str]:
    return collected()


def trained(default: list[str], device: str) -> list[tuple[str, ...]]:
    """Return the parameters of the default run's cases that train the whole registry."""
    cases = [t.partition("[")[2].rstrip("]").split("-") for t in default if f"::{TRAINING}[" in t]
    return [tuple(values) for name, *values in cases if name == device]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_format_optimizer_and_policy_is_trained(default: list[str], device: str) -> None:
    """Byte for byte, against the reference: each case trains tables of every format."""
    cases = trained(default, device)
    assert {optimizer for optimizer, *_ in cases} == set(kinds.EVERY)
    assert {policy for _, policy, *_ in cases} == {*registry.POLICIES, "None"}
    assert {table.precision for table in drive.every_format()} == set(registry.FORMATS)
    assert {kinds.named(optimizer).kind for optimizer, *_ in cases} == set(registry.OPTIMIZERS)


def test_all_tests_are_those_and_the_exhaustive_ones(default: list[str]) -> None:
    exhaustive, everything = collected("-m", "exhaustive"), collected("-m", "")
    assert sorted(default + exhaustive) == sorted(everything)
    assert len(default) < len(everything) * 2 / 3


def test_one_case_by_its_name_is_run() -> None:
    for case in ("cpu-sgd-lru-none", "cuda-sgd-lru-none"):
        name = f"{TRAINING}[{case}]"
        assert collected(path=f"{BYTES}::{name}") == [f"{BYTES}::{name}"]


def test_a_cover_shows_every_pair() -> None:
    axes = ["cpu", "cuda"], ["a", "b", "c", "d"], ["x", "y", "z"], ["0", "1"]
    cases = ["-".join(values) for values in product(*axes)]
    chosen = pairwise.cover(cases)
    assert chosen == pairwise.cover(cases)
    assert 12 <= len(chosen) <= 16
    for (i, first), (j, second) in product(enumerate(axes), repeat=2):
        for one, other in product(first, second):
            if i < j:
                assert any(c.split("-")[i] == one and c.split("-")[j] == other for c in chosen)


def test_of_one_parameter_every_value_is_chosen() -> None:
    assert pairwise.cover(["a", "b"]) == {"a", "b"}


@pytest.mark.parametrize("name", ["wheel.txt", "sanitize.txt"])
def test_the_files_of_other_runs_exist(name: str) -> None:
    listed = (TESTS / name).read_text().split()
    assert listed
    assert [file for file in listed if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("which", ["gpu", "not exhaustive"])
def test_the_tests_of_a_device_need_no_hypothesis(which: str) -> None:
    code = "import sys; sys.modules['hypothesis'] = None\nimport pytest; sys.exit(pytest.main())"
    command = [sys.executable, "-P", "-c", code, "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", which, "tests/collection"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    if which == "gpu":
        assert done.returncode == 0, said
        assert "because Hypothesis is not installed: test_random_operations.py" in said
        assert "test_random_operations.py>" not in said
        assert "test_collection_bytes.py>" in said
    else:
        assert done.returncode == 4
        assert "Hypothesis is not installed" in said
