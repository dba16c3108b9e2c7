"""Which test files have tests of a device, and which of them need Hypothesis.

`pytest -m gpu` imports the former alone: it is quick, and runs where little else is installed.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from folders import TESTS

DEVICE = re.compile(r"\b(?:mark\.gpu|each_device)\b")
HYPOTHESIS = re.compile(r"^(?:from|import) (?:hypothesis|strategies)\b", re.MULTILINE)


@functools.cache
def _text(path: Path) -> str:
    return path.read_text("utf-8")


def has_tests_of_a_device(path: Path) -> bool:
    """Whether a test file names the marker ``gpu`` or the fixture that has it."""
    return DEVICE.search(_text(path)) is not None


def needs_hypothesis(path: Path) -> bool:
    """Whether a test file cannot be imported without Hypothesis."""
    return HYPOTHESIS.search(_text(path)) is not None


def without_hypothesis() -> list[str]:
    """Return the names of the files with tests of a device that need Hypothesis."""
    files = sorted(TESTS.rglob("test_*.py"))
    return [path.name for path in files if has_tests_of_a_device(path) and needs_hypothesis(path)]
