"""Builds and runs the C++ programs of checks, see driver.h."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from folders import ROOT


def build(target: Path, sources: list[Path], *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile a driver."""
    compiler = os.environ.get("CXX", "g++").split()
    base = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-pthread", "-ffp-contract=off"]
    base += ["-DMPE_ISA=base", *(f"-I{ROOT / name}" for name in ("kernels", "include"))]
    base += flags

    def compile_one(source: Path) -> subprocess.CompletedProcess[str]:
        made = ["-c", str(source), "-o", str(target.with_name(f"{source.stem}.o"))]
        return subprocess.run([*compiler, *base, *made], capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(compile_one, sources):
            if done.returncode != 0:
                return done
    objects = [str(target.with_name(f"{source.stem}.o")) for source in sources]
    link = [*compiler, *base, *objects, "-o", str(target)]
    return subprocess.run(link, capture_output=True, text=True)


def run(driver: Path, check: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one check."""
    threads = ("MPEMBED_NUM_THREADS", "OMP_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in threads} | environment
    return subprocess.run([driver, check], capture_output=True, text=True, timeout=120, env=env)


def built(target: Path, sources: list[Path]) -> Path:
    """Compile a driver without a warning."""
    done = build(target, sources, "-O2", "-Werror")
    assert done.returncode == 0, done.stderr
    return target
