"""A rank that dies: torchrun starts all ranks again, and they go on from the last checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from folders import environment
from sharded_saves import after_all_steps, without_slot

pytestmark = [pytest.mark.torch, pytest.mark.exhaustive]
PROGRAM = Path(__file__).parent / "restarted.py"


def test_killed_ranks_resume_with_the_bytes_of_a_run_that_was_not_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.2"]
    variables = {"OMP_NUM_THREADS": "1", "MPEMBED_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # Otherwise PyTorch 2.13 leaves the addresses of dead ranks where gloo finds them again.
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    process = subprocess.Popen(
        [*command, str(PROGRAM), str(tmp_path), "10"],
        cwd=tmp_path,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the ranks too, which are in its session
        output, _ = process.communicate()
        pytest.fail(f"the job hangs:\n{output}")
    assert process.returncode == 0, output
    lives = {path.name: path.read_text() for path in tmp_path.glob("life*")}
    assert lives == {"life0.rank0": "0", "life0.rank1": "0", "life1.rank0": "8", "life1.rank1": "8"}
    found = {}
    for path in tmp_path.glob("end*.json"):
        found.update(json.loads(path.read_text()))
    wanted = after_all_steps("adam")
    assert {row: without_slot(found[row]) for row in wanted} == wanted
