"""Compile the kernels, read their machine code, check it and the tables of docs/gpu_model.md.

Run in the root of the project as ``PYTHONPATH=tools python -m mpembed_gpu COMMAND``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from mpembed_build.objects import BUILD
from mpembed_build.requirements import compiler_wheels, wheels_exist
from mpembed_build.settings import BuildError
from mpembed_build.toolkit import UnusableError
from mpembed_gpu import calls, cubins, gates, page, report, step, step_page, workload
from mpembed_gpu.evaluate import Evaluation

_COMMANDS = {
    "requirements": "print the wheels that the other commands need here",
    "gates": "check registers, stack, occupancy and vector loads",
    "check": "the same, and that the tables of docs/gpu_model.md are up to date",
    "write": "bring the tables of docs/gpu_model.md up to date",
    "step": "bring the tables of the whole step up to date alone; --save FILE keeps its figures",
    "calls": "count the runtime's calls of the installed package's step, for the next `write`",
    "workload": "count the step's batches on the CPU, for the next `write`",
}


def main() -> int:
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="mpembed_gpu", description=__doc__.splitlines()[0])
    commands = "\n".join(f"{name}: {text}" for name, text in _COMMANDS.items())
    parser.add_argument("command", choices=_COMMANDS, help=commands)
    parser.add_argument("--save", type=Path, metavar="FILE", help="where `step` keeps its figures")
    given = parser.parse_args()
    command = given.command
    if command == "requirements":
        print("\n".join(_requirements()))
        return 0
    if command == "workload":
        workload.write(step.WORKLOAD)
        return 0
    if os.environ.get("MPEMBED_CUDA") == "0":
        print("gates of the CUDA kernels: skipped, MPEMBED_CUDA is 0")
        return 0
    try:
        tools = cubins.Kernels(os.environ)
    except (UnusableError, BuildError) as reason:
        print(f"gates of the CUDA kernels: skipped, {reason}")
        return 0
    if command == "step":
        return _step(tools, given.save)
    if command == "calls":
        include = tools.toolkit.include
        calls.write(tools.compiler, include, BUILD / "stub_runtime", step.CALLS)
        return 0
    return _run(command, tools)


def _step(tools: cubins.Kernels, save: Path | None) -> int:
    """Fill the page's tables of the whole step, or keep its figures for those of later commits."""
    found, bounds = step.measure(step.evaluation(tools))
    if save is not None:
        commit, date = cubins.run(["git", "log", "-1", "--format=%h %cs"]).split()
        step.save(save, found, commit, date)
        return 0
    text = page.PAGE.read_text()
    page.PAGE.write_text(page.fill(text, step_page.tables(found, bounds), page.release(text)))
    return 0


def _requirements() -> list[str]:
    """Return the wheels to install: programs that read machine code, a compiler where needed."""
    if os.environ.get("MPEMBED_CUDA") == "0" or not wheels_exist():
        return []
    return [*compiler_wheels(os.environ, Path()), *cubins.READERS]


def _run(command: str, tools: cubins.Kernels) -> int:
    start = time.monotonic()
    kernels = report.all_kernels(tools, gates.ARCHITECTURES)
    wrong = gates.failures(kernels)
    for line in wrong:
        print(line, file=sys.stderr)
    if command != "gates":
        wrong += _page(command, tools, kernels)
    seconds = time.monotonic() - start
    result = "failed" if wrong else "passed"
    print(f"gates of {len(kernels)} CUDA kernels: {result} ({seconds:.0f} s)")
    return 1 if wrong else 0


def _page(command: str, tools: cubins.Kernels, kernels: list[report.Kernel]) -> list[str]:
    text = page.PAGE.read_text()
    made_with = page.release(text)
    if command == "check" and tools.release != made_with:
        print(f"{page.PAGE} was made with CUDA {made_with}, here is {tools.release}: not compared")
        return []
    evaluation = Evaluation(tools, kernels)
    made = page.tables(kernels, evaluation) | step_page.tables(*step.measure(evaluation))
    wanted = page.fill(text, made, tools.release)
    if command == "write":
        page.PAGE.write_text(wanted)
        return []
    diff = page.difference(text, wanted)
    if not diff:
        return []
    print(diff, file=sys.stderr)
    return [f"{page.PAGE} is out of date: PYTHONPATH=tools python -m mpembed_gpu write"]


if __name__ == "__main__":
    sys.exit(main())
