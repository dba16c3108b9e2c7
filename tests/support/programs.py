"""Programs in processes of their own: scripts that print "trained" at their end, and files."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from folders import environment

# Python 3.12 and later warn of it where there are threads.
FORK = "ignore::DeprecationWarning:multiprocessing.popen_fork"


def call(
    folder: Path, program: Path, *arguments: object, timeout: float | None = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a file of the tests as a program; return what came of it."""
    return subprocess.run(
        [sys.executable, "-P", str(program), *map(str, arguments)],
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def torchrun(
    folder: Path, program: Path, *arguments: object, options: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Let torchrun start a file of the tests on two ranks; return what came of all of them."""
    launch = [sys.executable, "-P", "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launch, "--nproc-per-node", "2", *options, str(program), *map(str, arguments)],
        cwd=folder,
        env={**environment(), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the ranks too, which are in its session
        output, errors = process.communicate()
        pytest.fail(f"the job hangs:\n{output}\n{errors}")
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program, in a process where modules of its own can be found again."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", FORK, str(path), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.splitlines()[-1] == "trained"
