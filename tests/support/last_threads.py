"""Run a module or a file as a program, then print which threads of gloo it leaves behind.

One that is left aborts the process where it lets go of a tensor while the interpreter ends.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__)
SAYS = "threads of gloo at the end"


def left(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what each rank has printed about its threads."""
    return [line.rpartition(": ")[2] for line in done.stderr.splitlines() if SAYS in line]


def main() -> None:
    """Run the program that the arguments name."""
    program, sys.argv = sys.argv[1], sys.argv[1:]
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    try:
        run(program, run_name="__main__")
    finally:
        threads = Path("/proc/self/task").glob("*/comm")  # none but on Linux
        gloo = [one for one in threads if "gloo" in one.read_text()]
        # One write: the ranks share the file.
        os.write(2, f"\n{SAYS}: {len(gloo)}\n".encode())


if __name__ == "__main__":
    main()
