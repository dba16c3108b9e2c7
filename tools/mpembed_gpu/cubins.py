"""The kernels as machine code of one architecture, compiled with the build's own flags."""

from __future__ import annotations

import importlib.machinery
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mpembed_build import cuda, host, toolkit
from mpembed_build.objects import BUILD, Job, compile_all, target
from mpembed_build.settings import CudaSettings

# Wheels with the programs that read cubins, of older toolkits too, for machines without them.
READERS = ["nvidia-cuda-cuobjdump==13.2.*", "nvidia-cuda-nvdisasm==13.2.*"]
FLAGS = [flag for flag in cuda.FLAGS if flag != "-lineinfo"]
_MODEL = ["-DMPE_MODEL=1"]
_PROBES = BUILD / "probes"
_SWITCH = re.compile(
    r"auto with_format\(int32_t \w+, (\w+) (\w+)\) \{\n.*?\n\}\n", re.DOTALL
)  # the dispatch over formats


class Kernels:
    """Compiles the kernels and reads their machine code; runs in the root of the project."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.compiler = host.find_compiler(environment)
        self.ccbin = cuda.host_compiler(self.compiler, environment)
        settings = CudaSettings.read(environment)
        self.toolkit = toolkit.find(settings, environment, self.ccbin, cuda.PROBES)
        beside = Path(self.toolkit.nvcc).parent
        self.cuobjdump = find_reader("cuobjdump", beside)
        self.nvdisasm = find_reader("nvdisasm", beside)

    @property
    def release(self) -> str:
        """The toolkit's release, such as ``13.0``: registers differ from one to the next."""
        return ".".join(self.toolkit.version.split(".")[:2])

    def job(
        self, source: Path, arch: str, include: tuple[str, ...] = (), model: bool = False
    ) -> Job:
        """Return the job for one file and architecture; `model`: for the model's workload only."""
        paths = [f"-I{path}" for path in (*include, "include", "kernels")]
        flags = [*FLAGS, *(_MODEL if model else ()), f"-arch=sm_{arch}", *paths]
        made = target(source, [f"CUDA {self.toolkit.version}", *flags]).with_suffix(".cubin")
        files = ["-MMD", "-MF", str(made.with_suffix(".d")), str(source), "-o", str(made)]
        command = [self.toolkit.nvcc, *flags, "-ccbin", self.ccbin, "-cubin", *files]
        return Job(source, made, command, own=True)

    def compile(self, jobs: list[Job]) -> None:
        """Bring cubins up to date, the slowest first."""
        compile_all(sorted(jobs, key=_slowest_first))

    def probe(self, source: Path, arch: str, cpp_type: str) -> Job:
        """Return the job for a file compiled for tables of one format.

        A kernel has a path for each format. Here only one is left, so that its instructions can be
        counted.
        """
        include = _PROBES / cpp_type
        header = include / "mpembed" / "registry_types.h"
        text = single_format(Path("include/mpembed/registry_types.h").read_text(), cpp_type)
        if not header.exists() or header.read_text() != text:
            header.parent.mkdir(parents=True, exist_ok=True)
            header.write_text(text)
        return self.job(source, arch, (str(include),), model=True)

    def resources(self, cubin: Path) -> str:
        """Return cuobjdump's report of registers and memory."""
        return run([str(self.cuobjdump), "-res-usage", str(cubin)])

    def listing(self, cubin: Path) -> str:
        """Return the instructions, with labels."""
        return run([str(self.nvdisasm), "-c", str(cubin)])


def _slowest_first(job: Job) -> tuple[bool, int]:
    # The files of update's kernels are short, but have one for each optimizer.
    return not job.source.stem.startswith("update_"), -job.source.stat().st_size


def sources() -> list[Path]:
    """Return the files that have kernels."""
    return sorted(Path("kernels/cuda").glob("*.cu"))


def single_format(header: str, cpp_type: str) -> str:
    """Return ``registry_types.h`` with a `with_format` that knows one format."""
    body = rf"auto with_format(int32_t, \1 \2) {{\n  return \2({cpp_type}{{}});\n}}\n"
    text, found = _SWITCH.subn(body, header)
    if found != 1:
        raise ValueError("registry_types.h has no with_format of the known form")
    return text


def find_reader(name: str, beside: Path) -> Path:
    """Return a program that reads cubins, from the wheels, the toolkit or PATH."""
    spec = importlib.machinery.PathFinder.find_spec("nvidia")
    places = (spec.submodule_search_locations if spec else None) or []
    wheels = [path for place in places for path in Path(place).glob(f"cu*/bin/{name}")]
    on_path = shutil.which(name, path=os.environ.get("PATH", os.defpath))
    for path in (*sorted(wheels, reverse=True), beside / name, Path(on_path or name)):
        if path.is_file():
            return path
    raise toolkit.UnusableError(f"{name} was not found: pip install {' '.join(READERS)}")


def demangle(names: list[str]) -> dict[str, str]:
    """Return readable names; binutils' c++filt comes with every g++."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def run(command: list[str]) -> str:
    """Return what a program prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
