"""Say what the machine is: the GPU, the driver, the tools and the packages that matter here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import gpu_figures

GPU = "name,compute_cap,driver_version,memory.total,clocks.max.sm,clocks.max.memory,pstate"
PACKAGES = ["torch", "numpy", "cython", "setuptools", "wheel", "pip", "pytest", "pytest-xdist"]
PACKAGES += ["hypothesis", "jax", "safetensors", "cuda-bindings", "cuda-core"]
TOOLS = ("nvcc", "g++", "compute-sanitizer", "ncu", "cuobjdump")


def said(command: list[str]) -> str:
    """Return the last line that a program prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    printed = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    return (printed or [f"status {done.returncode}"])[-1]


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def release(tool: str) -> str:
    """Return a tool's release."""
    path = shutil.which(tool)
    if path is None:
        return "absent"
    lines = said([path, "--version"])
    return lines if tool != "g++" else said([path, "-dumpfullversion"])


def main() -> int:
    """Print it; the exit status is 1 without a GPU."""
    query = ["nvidia-smi", f"--query-gpu={GPU}", "--format=csv,noheader"]
    found = said(query)
    gpu_figures.add("device", f"{GPU}: {found}", gpu=found)
    packages = {name: version(name) for name in PACKAGES}
    tools = {name: release(name) for name in TOOLS}
    python = f"{sys.version.split()[0]} at {sys.executable}"
    gpu_figures.add("python", f"{python}, {packages}", **packages)
    gpu_figures.add("tools", str(tools), **tools)
    memory = Path("/proc/meminfo").read_text().split("\n", 1)[0]
    gpu_figures.add("host", f"{os.cpu_count()} processors, {memory}, kernel {os.uname().release}")
    return 0 if subprocess.run(query, capture_output=True).returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
