"""The parts of gpu.sh, and what runs them; see gpu.sh for how it is called."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import gpu_parts
import gpu_report
from gpu_parts import Part

ROOT = Path(__file__).resolve().parents[2]
GPU = "bench/gpu"
SITE, MADE = ROOT / "build/gpu_site", ROOT / "build/gpu_made"
MINUTES = {"first": 9.0, "second": 4.0, "all": None}
PYTHON = [os.environ.get("PYTHON") or sys.executable, "-P"]
NO_PLUGINS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
# Parts that are a program of this folder: its name and arguments.
PROGRAMS = {
    "device": ("gpu_device",),
    "assumptions": ("gpu_assumptions",),
    "training": ("gpu_training",),
    "torch": ("gpu_torch",),
    "costs": ("gpu_costs",),
    "dlrm": ("gpu_dlrm",),
    "kernels": ("gpu_dlrm", "--profile"),
    "host": ("gpu_dlrm", "--placement=host", "--cached"),
    "prefetch": ("gpu_prefetch",),
}


def program(name: str, *arguments: str) -> list[str]:
    """Return the command of a program of this folder."""
    return [*PYTHON, f"{GPU}/{name}.py", *arguments]


def pytest(*arguments: str, processes: int = 1) -> list[str]:
    """Return a command of pytest.

    A warning is none of its errors: releases of other packages that are not ours to choose give
    some. Plugins that the machine happens to have are left out.
    """
    command = [*PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu_outcomes"]
    command += ["-W", "default", "--continue-on-collection-errors"]
    if processes > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-p", "xdist.plugin", "-n", str(processes)]
    return [*command, *arguments]


def sanitizer(tool: str, limit: float, stretch: float = 1.5) -> Part:
    """Return a part that trains under a tool of compute-sanitizer."""
    command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=86"]
    command += ["--target-processes=all", *program("gpu_training", "--short")]
    return Part(tool, limit, command, stretch)


def programmed(name: str, limit: float, *more: str) -> Part:
    """Return the part of PROGRAMS that has a name."""
    return Part(name, limit, program(*PROGRAMS[name], *more))


def first(wheels: str) -> list[Part]:
    """Return the parts of a first visit of nine minutes, the most important answers first."""
    some = "((test_forward and (64 or 128)) or (test_train and rowwise_adagrad) or test_convert)"
    rest = ("-m", "gpu and not exhaustive", "tests", "--ignore=tests/graphs")
    processes = min(8, os.cpu_count() or 1)
    return [
        programmed("device", 15),
        Part("install", 105, program("gpu_install", "--wheels", wheels), 3, vital=True),
        programmed("assumptions", 25),
        programmed("training", 40),
        programmed("torch", 20),
        programmed("costs", 25),
        programmed("dlrm", 60),
        programmed("kernels", 35),
        programmed("host", 25, "--lookups=1"),
        programmed("prefetch", 25),
        Part("benchmarks", 40, pytest("bench/test_gpu.py", "-k", some)),
        Part("graphs", 30, pytest("-m", "gpu", "tests/graphs", processes=processes), 3),
        Part("tests", 40, pytest(*rest, processes=processes), 3),
        sanitizer("memcheck", 30, 3),
        sanitizer("synccheck", 20, 3),
    ]


def second(wheels: str, statuses: dict[str, int | str]) -> list[Part]:
    """Return the parts of a second visit: what failed in the first, ncu's counters, the rest.

    `statuses` are those of the first visit's parts; a word stands for one that was cut short.
    """
    parts = {part.name: part for part in first(wheels)}
    begin = [parts.pop(name) for name in ("device", "install")]
    again = [Part(p.name, p.limit, p.command, 2) for p in parts.values() if statuses.get(p.name)]
    failed = [part for part in again if isinstance(statuses[part.name], int)]
    return [
        *begin,
        *failed,
        Part("ncu", 60, program("gpu_counters", "--out", str(MADE)), 2),
        *(part for part in again if part not in failed),
        Part("rest", 60, pytest("-m", "gpu", "tests", processes=min(8, os.cpu_count() or 1)), 3),
        sanitizer("racecheck", 30, 2),
        sanitizer("initcheck", 20, 2),
    ]


def everything() -> list[Part]:
    """Return the parts of a machine with time: a build, every test, every tool and benchmark."""
    build = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    jobs = int(os.environ.get("MPEMBED_GPU_JOBS", "4"))  # tests at a time; they share the GPU
    return [
        programmed("device", 60),
        Part("build", 3600, [*PYTHON, *build, "--force-reinstall", "--verbose", "."]),
        programmed("assumptions", 300),
        Part("tests", 5400, pytest("-m", "", processes=jobs)),
        programmed("training", 600),
        programmed("torch", 300),
        *(sanitizer(tool, 1800) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
        Part("benchmarks", 3600, pytest("bench/test_gpu.py")),
        programmed("costs", 300),
        programmed("dlrm", 600),
        programmed("kernels", 600),
        programmed("host", 600),
        programmed("prefetch", 300),
    ]


def environment(*, visit: bool) -> dict[str, str]:
    """Return the variables of the parts."""
    own = [*([str(SITE)] if visit else []), *(str(ROOT / name) for name in ("tools", GPU))]
    own += filter(None, [os.environ.get("PYTHONPATH")])
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(own), "MPEMBED_GPU_SITE": str(SITE)}
    made |= {"MPEMBED_CUDA": "1", "MPEMBED_TEST_CUDA": "installed", "MPEMBED_GPU_MADE": str(MADE)}
    made.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    if visit:
        made[NO_PLUGINS] = "1"
    if "MPEMBED_CUDA_ARCHS" not in made and (capability := gpu_capability()):
        # Machine code for this GPU alone: the default list takes several times as long.
        made["MPEMBED_CUDA_ARCHS"] = capability
    return made


def gpu_capability() -> str:
    """Return the first GPU's, such as "90"; empty if nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.match(r"(\d+)\.(\d+)\s", done.stdout)
    return "".join(found.groups()) if found else ""


def statuses(results: str) -> dict[str, int | str]:
    """Return the parts' statuses of a visit's results.json."""
    parts = json.loads(Path(results).read_text("utf-8"))["parts"]
    return {part["part"]: part["status"] for part in parts}


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="bash bench/gpu.sh", description="see the file's head")
    which = parser.add_mutually_exclusive_group()
    for name in ("first", "second"):
        which.add_argument(f"--{name}", dest="which", action="store_const", const=name)
    parser.set_defaults(which="all")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu", metavar="DIR")
    parser.add_argument("--wheels", default=str(ROOT / "build/gpu_wheels"), metavar="DIR")
    parser.add_argument("--after", metavar="RESULTS", help="results.json of the first visit")
    parser.add_argument("--minutes", type=float, help="of all parts together")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Part]:
    """Return the parts of what was asked for."""
    if options.which == "first":
        return first(options.wheels)
    if options.which == "second":
        return second(options.wheels, statuses(options.after) if options.after else {})
    return everything()


def main() -> int:
    """Run the parts; the exit status is 1 if any failed."""
    options = arguments()
    parts = chosen(options)
    minutes = options.minutes or MINUTES[options.which]
    if options.dry_run:
        start = 0.0
        for part in parts:
            print(
                f"{part.name}: from {start:.0f} s, {part.limit:.0f} s: {shlex.join(part.command)}"
            )
            start += part.limit
        print(f"at most {'-' if minutes is None else format(minutes * 60, '.0f')} s")
        return 0
    out = options.out.resolve()
    for folder in (out, MADE):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (*gpu_parts.RESULTS, gpu_parts.ARCHIVE):  # of a run before
        (out / name).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs = gpu_parts.Parts(out, environment(visit=options.which != "all"), minutes and minutes * 60)
    try:
        runs.run_all(parts)
    finally:
        left_out = gpu_parts.archive(out, list(MADE.iterdir()))
        print(f"{out / gpu_parts.ARCHIVE}" + (f", without {left_out}" if left_out else ""))
    print(gpu_report.write(out), end="")
    return 1 if runs.failed else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
