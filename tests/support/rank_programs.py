"""A program on every rank of a process group, each rank a process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from folders import SUPPORT, environment


def run_ranks(
    folder: Path, names: Sequence[str], ranks: int, *, timeout: float = 240, seconds: float = 60
) -> list[str]:
    """Run programs on every rank; return what each has printed.

    They are functions of `plain_training` or `plain_faults`. The first that fails is the last.
    `seconds` is the timeout of the group; all are killed after `timeout` seconds.
    """
    program, store = str(SUPPORT / "plain_programs.py"), str(folder / "store")
    variables = {**environment(), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    own = [",".join(names), str(ranks), store, str(seconds)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-W", "error", program, *own, str(rank)],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    end = time.monotonic() + timeout
    try:
        told = [one.communicate(timeout=max(end - time.monotonic(), 0.1))[0] for one in processes]
    finally:
        for one in processes:
            one.kill()
    return told


def assert_passed(told: Sequence[str], name: str) -> None:
    """Fail, with what all ranks have printed, where a function has not ended well on each."""
    lines = [text.splitlines() for text in told]
    assert all(f"{name} passed" in one for one in lines), "\n".join(told)
