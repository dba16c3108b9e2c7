"""Compile gpu_costs.cu with the system's nvcc, run it, keep its figures."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import gpu_figures
from gpu_sizes import size

SOURCE = Path(__file__).with_suffix(".cu")


def compile_program(target: Path) -> None:
    """Compile for the GPU that MPEMBED_CUDA_ARCHS names, or for any."""
    target.parent.mkdir(parents=True, exist_ok=True)
    arch = os.environ.get("MPEMBED_CUDA_ARCHS", "")
    flags = [f"-arch=sm_{arch}"] if arch.isdigit() else []
    flags += os.environ.get("MPEMBED_GPU_NVCC_FLAGS", "").split()
    nvcc = os.environ.get("MPEMBED_NVCC", "nvcc")
    subprocess.run([nvcc, "-std=c++17", "-O3", *flags, str(SOURCE), "-o", str(target)], check=True)


def main() -> int:
    """Print the figures; return the program's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=size(2048), help="of each buffer")
    parser.add_argument("--launches", type=int, default=size(1000, 4), help="of the empty kernel")
    options = parser.parse_args()
    program = Path(os.environ.get("MPEMBED_GPU_MADE", "build/gpu_made")).resolve() / "gpu_costs"
    compile_program(program)
    command = [str(program), str(options.mebibytes), str(options.launches)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 3:
                print(line, end="", flush=True)
                continue
            name, value, unit = fields
            text = f"{name}: {float(value):.4g} {unit}"
            gpu_figures.add("costs", text, name=name, value=float(value), unit=unit)
    return running.returncode


if __name__ == "__main__":
    sys.exit(main())
