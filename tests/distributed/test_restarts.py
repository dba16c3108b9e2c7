"""A rank that dies: torchrun starts all ranks again, and they go on from the last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from programs import torchrun
from sharded_saves import after_all_steps, without_slot

pytestmark = [pytest.mark.torch, pytest.mark.exhaustive]
PROGRAM = Path(__file__).parent / "restarted.py"


def test_killed_ranks_resume_with_the_bytes_of_a_run_that_was_not_killed(tmp_path: Path) -> None:
    options = ["--max-restarts", "1", "--monitor-interval", "0.2"]
    variables = {"MPEMBED_NUM_THREADS": "1"}
    # Otherwise PyTorch 2.13 leaves the addresses of dead ranks where gloo finds them again.
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    done = torchrun(tmp_path, PROGRAM, tmp_path, 10, options=options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    lives = {path.name: path.read_text() for path in tmp_path.glob("life*")}
    assert lives == {"life0.rank0": "0", "life0.rank1": "0", "life1.rank0": "8", "life1.rank1": "8"}
    found = {}
    for path in tmp_path.glob("end*.json"):
        found.update(json.loads(path.read_text()))
    wanted = after_all_steps("adam")
    assert {row: without_slot(found[row]) for row in wanted} == wanted
