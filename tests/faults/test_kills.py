"""A kill at any moment of a save leaves a whole file, and the next save clears up."""

from __future__ import annotations

import json
from pathlib import Path

import programs
import pytest

PROGRAM = Path(__file__).with_name("kill_saves.py")


@pytest.mark.parametrize(
    ("kills", "seed", "writers"),
    [
        (20, 0, 2),
        pytest.param(150, 1, 1, marks=pytest.mark.exhaustive),
        pytest.param(150, 2, 3, marks=pytest.mark.exhaustive),
    ],
)
def test_kills_damage_nothing_and_leave_nothing(
    kills: int, seed: int, writers: int, tmp_path: Path
) -> None:
    done = programs.call(tmp_path, PROGRAM, kills, seed, writers)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["interrupted_saves"] > 0
    assert found["steps"] > 0
    assert (found["damaged"], found["leftovers"]) == (0, 0)
