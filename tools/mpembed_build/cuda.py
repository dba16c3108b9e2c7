"""What nvcc compiles: the kernels of the optional extension ``mpembed._bindings.cuda``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpembed_build import architectures, host
from mpembed_build.objects import BUILD, Job, compilers, target
from mpembed_build.settings import BuildError, CudaSettings
from mpembed_build.toolkit import Toolkit, UnusableError, find

NAME = "mpembed._bindings.cuda"
BINDING = Path("mpembed/_bindings/cuda.pyx")
KERNELS = Path("kernels/cuda")
TABLE = "table.cu"
PROBES = BUILD / "nvcc.json"
# No contraction, as on the CPU: the results must be the same on every machine. -lineinfo costs
# nothing at run time and lets profilers and sanitizers name the line.
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo"]
HOST = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
# The variables of nvcc that change its output.
VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")


def present(root: Path) -> bool:
    """Return whether a source tree has the extension at all."""
    return (root / BINDING).is_file() and any((root / KERNELS).glob("*.cu"))


def host_compiler(cxx: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the program that nvcc calls; of ``ccache g++ -m64`` it is g++."""
    own = environment.get("NVCC_CCBIN")
    return own or [word for word in cxx if not word.startswith("-")][-1]


class Cuda:
    """The toolkit and the jobs that make the extension."""

    def __init__(self, settings: CudaSettings, toolkit: Toolkit, compiler: host.Compiler) -> None:
        self.toolkit = toolkit
        self.compiler = compiler
        self.release = f"CUDA {toolkit.version}"
        self.runtime = settings.runtime
        try:
            self.architectures = architectures.choose(settings.architectures, toolkit.supported)
        except ValueError as error:
            raise BuildError(f"MPEMBED_CUDA_ARCHS: {error}") from None

    def flags(self) -> list[str]:
        """Return nvcc's flags."""
        through = [*HOST, *host.WARNINGS, *host.werror(), *self.compiler.extra]
        flags = [*FLAGS, *(f for a in self.architectures for f in a.flags())]
        if self.toolkit.at_least(12, 8):
            flags.append("--compress-mode=size")
        if host.werror():
            flags += ["-Werror", "all-warnings"]
        for flag in through:
            flags += ["-Xcompiler", flag.replace(",", "\\,")]  # nvcc splits at commas
        return [*flags, "-Iinclude", "-Ikernels"]

    def jobs(self) -> list[Job]:
        """Return the jobs for all files of the kernels."""
        plain = [*host.WARNINGS, *host.ARITHMETIC, *host.werror()]
        return self.kernels() + [
            self.compiler.job(source, plain, paths=self.toolkit.include, key=self.release)
            for source in sorted(KERNELS.glob("*.cpp"))
        ]

    def kernels(self) -> list[Job]:
        """Return the jobs for the files that nvcc compiles."""
        flags = self.flags()
        ccbin = host_compiler(self.compiler.cxx, os.environ)
        variables = [os.environ.get(name, "") for name in VARIABLES]
        # The path of nvcc is left out: pip puts the wheels into another folder at each build.
        key = [self.release, ccbin, self.compiler.identity, *flags, *variables]
        jobs = []
        for source in sorted(KERNELS.glob("*.cu")):
            named = self.names() if source.name == TABLE else []
            made = target(source, [*key, *named])
            files = ["-MMD", "-MF", str(made.with_suffix(".d")), "-c", str(source), "-o", str(made)]
            jobs.append(Job(source, made, [self.toolkit.nvcc, *flags, *named, *files], own=True))
        # With fewer files than compilers, nvcc compiles several architectures of a file at a time.
        threads = max(1, compilers() // max(1, sum(not job.fresh() for job in jobs)))
        more = [f"--threads={threads}", "-ccbin", ccbin]
        return [replace(job, command=[*job.command, *more]) for job in jobs]

    def names(self) -> list[str]:
        """Return the flag that tells a backend its architectures, for `mpe_backend.level`."""
        names = " ".join(name for a in self.architectures for name in a.names())
        return [f'-DMPE_CUDA_ARCHS="{names}"']

    def binding(self, source: Path) -> Job:
        """Return the job for the file that Cython writes."""
        return self.compiler.binding(source, paths=self.toolkit.include, key=self.release)

    def libraries(self) -> list[str]:
        """Return what to link."""
        runtime = self.toolkit.runtime(self.runtime)
        if self.runtime == "shared":
            return [str(runtime)]
        # Hidden, so that its calls cannot reach another CUDA runtime in the process.
        hide = f"-Wl,--exclude-libs,{runtime.name}"
        return [str(runtime), hide, "-ldl", "-lrt", "-lpthread"]

    def facts(self) -> dict[str, Any]:
        """Return what ``mpembed.info()`` says about the build."""
        return {
            "built": True,
            "toolkit": self.toolkit.version,
            "architectures": [name for a in self.architectures for name in a.names()],
            "runtime": self.runtime,
        }


def prepare(
    settings: CudaSettings, environment: Mapping[str, str], compiler: host.Compiler
) -> Cuda:
    """Return how to build the extension.

    Raises
    ------
    UnusableError
        The extension is to be left out; the message says why.
    BuildError
        The extension was asked for and cannot be built.
    """
    if settings.mode == "0":
        raise UnusableError("MPEMBED_CUDA was 0 at build time")
    try:
        if not present(Path()):
            raise UnusableError(f"the source has no {BINDING} with kernels in {KERNELS}")
        if sys.platform != "linux":
            raise UnusableError(f"CUDA is not built on {sys.platform}")
        toolkit = find(settings, environment, host_compiler(compiler.cxx, environment), PROBES)
    except UnusableError as reason:
        if settings.mode == "1":
            raise BuildError(f"MPEMBED_CUDA=1, but {reason}") from None
        raise
    return Cuda(settings, toolkit, compiler)
