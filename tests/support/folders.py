"""Where the files of the project lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"  # what tests import; pytest puts it on Python's path


def environment() -> dict[str, str]:
    """Return this process's variables for a test file that is run as a program."""
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
