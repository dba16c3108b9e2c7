"""What the C++ compiler compiles: the kernels for each SIMD level, and the files of Cython."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpembed_build.objects import Job, target
from mpembed_build.settings import BuildError, sanitizer_flags

CPU_KERNELS = Path("kernels/cpu")  # compiled for each SIMD level
SHARED = CPU_KERNELS / "shared"  # compiled once
STEP = Path("kernels/step")  # compiled once, above every backend

COMMON = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Iinclude", "-Ikernels"]
# NDEBUG because the asserts in the interpreter's headers hold the paths of those headers.
BINDING = ["-Wall", "-Wno-unused-function", "-DNDEBUG"]
BINDING += ["-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION"]
BINDING += ["-I."]  # headers of the bindings themselves lie beside them
MACOS = sys.platform == "darwin"
EXTENSION = ["-bundle", "-undefined", "dynamic_lookup"] if MACOS else ["-shared"]
EXPORTS = Path("kernels/exports.map")  # hides the standard library's templates too
# The folder of the extensions is beside that of the libraries, wherever the package is.
LIBRARIES = f"-Wl,-rpath,{'@loader_path' if MACOS else '$ORIGIN'}/../lib"
WARNINGS = ["-Wall", "-Wextra"]
# The results must be the same on every machine, so the compiler may not contract expressions. The
# other two flags change no result; without them the compiler cannot vectorise.
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# prefetchw is a hint, which processors without it ignore.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprfchw"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]


def find_compiler(environment: Mapping[str, str]) -> list[str]:
    """Return the C++ compiler's command."""
    if environment.get("CXX"):
        return shlex.split(environment["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found: install g++ or clang++, or set CXX")


def apple_architecture(environment: Mapping[str, str]) -> list[str]:
    """Return the flags of ``ARCHFLAGS``, which choose the processor to compile for on macOS.

    Raises
    ------
    BuildError
        It names two; they have different SIMD levels, so each needs its own build.
    """
    flags = shlex.split(environment.get("ARCHFLAGS", ""))
    if flags.count("-arch") > 1:
        raise BuildError(f"ARCHFLAGS={shlex.join(flags)}: build for one architecture at a time")
    return flags


def prefix_maps(paths: Iterable[str]) -> list[str]:
    """Return the flags that keep the paths of this machine out of the objects."""
    named = {str(Path.cwd()): "."} | {path: Path(path).name for path in paths}
    return [f"-ffile-prefix-map={path}={name}" for path, name in named.items()]


def werror() -> list[str]:
    """Return the flag that makes warnings errors, if ``MPEMBED_WERROR`` is 1."""
    return ["-Werror"] if os.environ.get("MPEMBED_WERROR") == "1" else []


class Compiler:
    """The C++ compiler, and the jobs that it can run."""

    def __init__(self) -> None:
        self.cxx = find_compiler(os.environ)
        apple = apple_architecture(os.environ) if sys.platform == "darwin" else []
        own = shlex.split(os.environ.get("CXXFLAGS", ""))
        self.extra = [*apple, *own, *sanitizer_flags(os.environ)]
        self.identity = ask([*self.cxx, "--version"])
        machine = ask([*self.cxx, *apple, "-dumpmachine"])
        self.x86 = machine.startswith(("x86_64", "amd64"))

    def levels(self) -> dict[str, list[str]]:
        """Return the SIMD levels and their flags."""
        return {"base": [], "avx2": AVX2, "avx512": AVX512} if self.x86 else {"base": []}

    def facts(self) -> dict[str, Any]:
        """Return what an optimizer of the user's own is compiled with at run time."""
        flags = [*(flag for flag in COMMON if not flag.startswith("-I")), *ARITHMETIC]
        return {"flags": flags, "levels": self.levels()}

    def job(
        self,
        source: Path,
        flags: list[str],
        level: str = "",
        paths: tuple[str, ...] = (),
        key: str = "",
    ) -> Job:
        """Return the job for one file.

        The `paths` of headers differ between build environments, so they are part neither of the
        object's key nor of the object. `key` names the versions of those headers and is part of
        the key.
        """
        flags = [*COMMON, *flags, *self.extra]
        made = target(source, [*self.cxx, self.identity, *flags, key], level)
        system = [word for path in paths for word in ("-isystem", path)]
        command = [*self.cxx, *flags, *prefix_maps(paths), *system, "-MMD"]
        command += ["-c", str(source), "-o", str(made)]
        return Job(source, made, command)

    def binding(self, source: Path, paths: tuple[str, ...] = (), key: str = "") -> Job:
        """Return the job for a file written by Cython."""
        python = {sysconfig.get_path(name) for name in ("include", "platinclude")}
        version = importlib.metadata.version("numpy")
        key = " ".join(filter(None, [str(sysconfig.get_config_var("SOABI")), version, key]))
        paths = (*sorted(python), numpy_include(), *paths)
        return self.job(source, [*BINDING, *werror()], paths=paths, key=key)

    def kernels(self) -> list[Job]:
        """Return the jobs for all kernels at all SIMD levels."""
        levels = self.levels()
        have = [f"-DMPE_HAVE_{level.upper()}=1" for level in levels]
        flags = [*WARNINGS, *ARITHMETIC, *have, *werror()]
        jobs = []
        for source in sorted(CPU_KERNELS.glob("*.cpp")):
            for level, simd in levels.items():
                jobs.append(self.job(source, [*flags, *simd, f"-DMPE_ISA={level}"], level))
        once = [*sorted(SHARED.glob("*.cpp")), *sorted(STEP.glob("*.cpp"))]
        jobs += [self.job(source, flags) for source in once]
        return jobs

    def link(self, objects: Sequence[str], libraries: Sequence[str]) -> list[str]:
        """Return the command that links an extension, without its output file."""
        return self._link(EXTENSION, [*objects, *libraries])

    def link_library(
        self, name: str, objects: Sequence[str], libraries: Sequence[str]
    ) -> list[str]:
        """Return the command that links a library of the package, without its output file."""
        if MACOS:
            kind = [
                "-dynamiclib",
                f"-Wl,-install_name,@rpath/{name}",
                "-Wl,-exported_symbol,_mpe_*",
            ]
        else:
            kind = ["-shared", f"-Wl,-soname,{name}", f"-Wl,--version-script={EXPORTS}"]
        return self._link(kind, [*objects, *libraries])

    def _link(self, kind: Sequence[str], files: Sequence[str]) -> list[str]:
        own = shlex.split(os.environ.get("LDFLAGS", ""))
        return [*self.cxx, *kind, "-pthread", *self.extra, *files, *own]


def ask(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def numpy_include() -> str:
    """Return the directory of NumPy's headers without importing NumPy."""
    return str(package_directory("numpy") / "_core" / "include")


def package_directory(name: str) -> Path:
    """Return the directory of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"the build needs the package {name}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
