"""Damaged copies of checkpoints crash nothing: a few of them here, more with ``mutate.py``."""

from __future__ import annotations

from pathlib import Path

import mutate
import pytest


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_damaged_copies_crash_nothing(tmp_path: Path, count: int) -> None:
    found, crashes = mutate.run(tmp_path, count, seed=1)
    assert not crashes, crashes[0]
    assert sum(found.values()) == count
    assert found["C++ refused, Python refused"] > count // 2
    assert found["C++ read, Python served"] > 0  # another seed, say
