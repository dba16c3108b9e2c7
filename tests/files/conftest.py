"""A file to replace."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a file with old bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path
