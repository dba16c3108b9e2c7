"""Counts the instructions of three kernels with callgrind and compares them with stored counts.

    PYTHONPATH=tools python bench/instructions.py [--write]

The counts are stored in ``instructions.json``. A count that has grown by more than 5 % is an error;
``--write`` stores the new counts. Counts depend on the compiler: if the stored ones come from
another compiler, the script says so and compares nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mpembed_build import host, objects

ROOT = Path(__file__).resolve().parent.parent
DRIVER = Path("bench/instructions.cpp")
KEPT = ROOT / "bench" / "instructions.json"
KERNELS = ["lookup_int8", "update_int4_rowwise", "cache_admit_int4"]
LEVEL = "avx2"  # the newest that valgrind knows
ALLOWED = 1.05


class NothingToCountError(Exception):
    """The counts cannot be taken or compared here, for the reason given."""


def release(version: str) -> str:
    """Return the compiler and its major release out of what ``--version`` prints."""
    first = version.splitlines()[0]
    name = "clang" if "clang" in first else "g++"
    numbers = re.findall(r"\b(\d+)\.\d+(?:\.\d+)?\b", first)
    return f"{name} {numbers[-1] if name == 'g++' else numbers[0]}" if numbers else first


def build() -> tuple[Path, str]:
    """Build the driver from the objects of an ordinary build; return it and the compiler."""
    compiler = host.Compiler()
    kernels = [job for job in compiler.kernels() if wanted(job.target.stem, compiler.levels())]
    jobs = [*kernels, compiler.job(DRIVER, [*host.WARNINGS, *host.werror()])]
    made = objects.BUILD / "bench" / "instructions"
    made.parent.mkdir(parents=True, exist_ok=True)
    linked = [*compiler.cxx, "-pthread", *compiler.extra, *objects.compile_all(jobs), "-o"]
    subprocess.run([*linked, str(made)], check=True)
    return made, release(compiler.identity)


def wanted(stem: str, levels: Any) -> bool:
    """Return whether an object belongs to the level that is counted, or to no level."""
    level = stem.rpartition("-")[2]
    return level == LEVEL or level not in levels


def count(driver: Path, kernel: str) -> int:
    """Return the instructions of one kernel."""
    out = driver.with_name(f"{kernel}.callgrind")
    command = ["valgrind", "--tool=callgrind", "--toggle-collect=measured"]
    command += [f"--callgrind-out-file={out}", str(driver), kernel]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kernel} under callgrind failed:\n{done.stderr}")
    return total(out.read_text())


def total(output: str) -> int:
    """Return the sum in a file of callgrind."""
    found = re.search(r"^(?:summary|totals): (\d+)", output, re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise RuntimeError("callgrind counted nothing")
    return int(found[1])


def grown(kept: dict[str, int], counts: dict[str, int]) -> list[str]:
    """Return what is wrong with new counts."""
    wrong = [f"{name}: no count is kept" for name in counts if name not in kept]
    for name in counts.keys() & kept.keys():
        if counts[name] > ALLOWED * kept[name]:
            said = f"{kept[name]:,} -> {counts[name]:,}, {counts[name] / kept[name] - 1:+.1%}"
            wrong.append(f"{name}: {said} instructions")
    return sorted(wrong)


def compare(kept: dict[str, Any], compiler: str, counts: dict[str, int]) -> list[str]:
    """Return what is wrong; NothingToCountError where the counts are another compiler's."""
    if kept["compiler"] != compiler:
        raise NothingToCountError(
            f"the kept counts are {kept['compiler']}'s, this is {compiler}: not compared"
        )
    return grown(kept["instructions"], counts)


def check_machine() -> None:
    """Raise NothingToCountError where nothing can be counted."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise NothingToCountError(f"the counts are of {LEVEL}, which {platform.machine()} lacks")
    if shutil.which("valgrind") is None:
        raise NothingToCountError("valgrind is not installed")
    if os.environ.get("CXXFLAGS"):
        raise NothingToCountError("CXXFLAGS is set and changes the code; unset it to count")


def run(write: bool) -> int:
    """Count, print, and compare or store."""
    check_machine()
    driver, compiler = build()
    with ThreadPoolExecutor(objects.compilers()) as pool:
        counts = dict(zip(KERNELS, pool.map(lambda k: count(driver, k), KERNELS), strict=True))
    for name, n in counts.items():
        print(f"{name:24s} {n:>12,d} instructions")
    if write:
        kept = {"compiler": compiler, "level": LEVEL, "instructions": counts}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        return 0
    wrong = compare(json.loads(KEPT.read_text()), compiler, counts)
    if wrong:
        print("more instructions than the stored counts allow:", *wrong, sep="\n  ")
        print("to accept them: PYTHONPATH=tools python bench/instructions.py --write")
    return 1 if wrong else 0


def main() -> int:
    """Run; if nothing can be counted, that is an error only with ``--write``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the counts")
    options = parser.parse_args()
    os.chdir(ROOT)
    try:
        return run(options.write)
    except NothingToCountError as reason:
        print(f"instructions: {reason}")
        return 1 if options.write else 0


if __name__ == "__main__":
    sys.exit(main())
