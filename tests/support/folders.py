"""Where the files of the project lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
TOOLS = ROOT / "tools"
SUPPORT = TESTS / "support"  # what tests import; pytest puts both on Python's path


def environment() -> dict[str, str]:
    """Return this process's variables for a test file that is run as a program."""
    own = [str(SUPPORT), str(TOOLS)]
    path = os.pathsep.join(filter(None, [*own, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
