"""Builds the extensions; all metadata is in pyproject.toml.

Every C++ file becomes one object in ``build/objs/<hash of compiler and flags>/`` and is compiled
again only when it, a header it includes, the compiler or the flags change. Kernels are compiled
once for each SIMD level. Environment: ``CXX``, ``CXXFLAGS``, ``LDFLAGS``, ``MAX_JOBS`` (compilers
at a time, default 2), ``MPEMBED_WERROR=1`` (warnings are errors).
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
BUILD = Path("build")  # relative to ROOT, where builds run
ONCE = {"parallel.cpp", "dispatch.cpp"}  # every other kernel file is compiled for each SIMD level

COMMON = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Iinclude", "-Ikernels"]
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
WARNINGS = ["-Wall", "-Wextra"]
# One answer on every machine: no contraction the source does not write. The other two change no
# result; without them the compiler may not vectorise.
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# prefetchw is a hint: processors without it take it as a no-op.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprfchw"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]


def find_compiler() -> list[str]:
    """Return the C++ compiler's command."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise CompileError("no C++ compiler found: install g++ or clang++, or set CXX")


def ask(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class ObjectCache:
    """Compiles C++ files to objects, several at a time, each only when it has to be."""

    def __init__(self) -> None:
        self.cxx = find_compiler()
        self.extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        self.identity = ask([*self.cxx, "--version"])
        self.x86 = ask([*self.cxx, "-dumpmachine"]).startswith(("x86_64", "amd64"))

    def levels(self) -> dict[str, list[str]]:
        """Return the SIMD levels and their flags."""
        return {"base": [], "avx2": AVX2, "avx512": AVX512} if self.x86 else {"base": []}

    def job(
        self,
        source: Path,
        flags: list[str],
        level: str = "",
        paths: tuple[str, ...] = (),
        key: str = "",
    ) -> tuple[Path, list[str]]:
        """Return an object and the command that makes it.

        `paths` of headers differ from one build environment to the next, so they do not count as
        flags; `key`, which names the versions of what lies there, does.
        """
        flags = [*COMMON, *flags, *self.extra]
        digest = hashlib.sha256("\0".join([*self.cxx, self.identity, *flags, key]).encode())
        stem = "-".join([*source.with_suffix("").parts, *filter(None, [level])])
        target = BUILD / "objs" / digest.hexdigest()[:16] / f"{stem}.o"
        system = [word for path in paths for word in ("-isystem", path)]
        command = [*self.cxx, *flags, *system, "-MMD", "-c", str(source), "-o", str(target)]
        return target, command

    @staticmethod
    def fresh(target: Path) -> bool:
        """Return whether an object is newer than all it was made from."""
        try:
            made = target.stat().st_mtime_ns
            rule = target.with_suffix(".d").read_text().replace("\\\n", " ")
            prerequisites = shlex.split(rule.partition(": ")[2])
            return all(Path(p).stat().st_mtime_ns < made for p in prerequisites)
        except FileNotFoundError:
            return False

    def compile_all(self, jobs: list[tuple[Path, list[str]]]) -> list[str]:
        """Bring all objects up to date and return their paths."""
        stale = [job for job in jobs if not self.fresh(job[0])]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
            errors = [error for error in pool.map(self.compile_one, stale) if error]
        if errors:
            raise CompileError("\n".join(errors))
        return [str(target) for target, _ in jobs]

    @staticmethod
    def compile_one(job: tuple[Path, list[str]]) -> str:
        """Run one compiler; return an error message or nothing."""
        target, command = job
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        start = time.time_ns()
        sys.stdout.write(shlex.join(command) + "\n")
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        sys.stderr.write(done.stderr)
        if done.returncode:
            return f"compiling {command[command.index('-c') + 1]} failed:\n{done.stderr}"
        os.utime(target, ns=(start, start))  # a file edited meanwhile must look newer
        return ""


class BuildExt(build_ext):
    """Builds extensions from the object cache."""

    def build_extensions(self) -> None:
        """Build all of them (not optional: a package without them is of no use)."""
        os.chdir(ROOT)
        self.cache = ObjectCache()
        for extension in self.extensions:
            self.build_extension(extension)

    def build_extension(self, ext: Extension) -> None:
        """Compile what changed, and link."""
        jobs = [self.binding_job(Path(source)) for source in ext.sources]
        if ext.name == "mpembed._core":
            jobs += self.kernel_jobs()
        objects = self.cache.compile_all(jobs)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")  # a running process may have the old one mapped
        command = [*self.cache.cxx, *SHARED, "-pthread", *self.cache.extra, *objects]
        command += [*shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(fresh)]
        print(shlex.join(command), flush=True)
        if subprocess.run(command).returncode:
            raise CompileError(f"linking {ext.name} failed")
        fresh.replace(target)

    def binding_job(self, source: Path) -> tuple[Path, list[str]]:
        """Return the job for a file generated by Cython."""
        python = {sysconfig.get_path(name) for name in ("include", "platinclude")}
        flags = ["-Wall", "-Wno-unused-function", "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION"]
        key = f"{sysconfig.get_config_var('SOABI')} {importlib.metadata.version('numpy')}"
        paths = (*sorted(python), numpy_include(), dlpack_include())
        return self.cache.job(source, [*flags, *werror()], paths=paths, key=key)

    def kernel_jobs(self) -> list[tuple[Path, list[str]]]:
        """Return the jobs for all kernels at all SIMD levels."""
        levels = self.cache.levels()
        have = [f"-DMPE_HAVE_{level.upper()}=1" for level in levels]
        flags = [*WARNINGS, *ARITHMETIC, *have, *werror()]
        jobs = []
        for source in sorted(Path("kernels/cpu").glob("*.cpp")):
            if source.name in ONCE:
                jobs.append(self.cache.job(source, flags))
                continue
            for level, simd in levels.items():
                jobs.append(self.cache.job(source, [*flags, *simd, f"-DMPE_ISA={level}"], level))
        return jobs


def werror() -> list[str]:
    """Return the flag that makes warnings errors, where it was asked for."""
    return ["-Werror"] if os.environ.get("MPEMBED_WERROR") == "1" else []


def numpy_include() -> str:
    """Return the directory of NumPy's headers without importing NumPy."""
    return str(package_directory("numpy") / "_core" / "include")


def dlpack_include() -> str:
    """Return the directory of dlpack/dlpack.h, which the wheel of apache-tvm-ffi carries."""
    include = package_directory("tvm_ffi") / "include"
    if not (include / "dlpack" / "dlpack.h").is_file():
        raise CompileError(f"apache-tvm-ffi is installed without dlpack/dlpack.h in {include}")
    return str(include)


def package_directory(name: str) -> Path:
    """Return the directory of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CompileError(f"the build needs the package {name}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def extensions() -> list[Extension]:
    """Return one extension for each .pyx file, translated to C++ under build/."""
    modules = [
        Extension(".".join(path.with_suffix("").parts), [str(path)], language="c++")
        for path in sorted(Path("mpembed").glob("*.pyx"))
        if path.name != "_cuda.pyx"  # needs nvcc
    ]
    return cythonize(
        modules,
        build_dir=str(BUILD / f"cython-{importlib.metadata.version('cython')}"),
        include_path=["."],
        language_level=3,
        compiler_directives={"freethreading_compatible": True, "embedsignature": True},
    )


os.chdir(ROOT)
setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
