"""Builds the extensions; all metadata is in pyproject.toml, how each file is compiled in tools/.

Every file becomes one object in ``build/objs/<hash of compiler and flags>/`` and is compiled again
only when it, a header it includes, the compiler or the flags change. CONTRIBUTING.md lists the
variables of the environment.
"""

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from mpembed_build import cuda, declarations, host, objects, sdk  # noqa: E402
from mpembed_build.settings import BuildError, CudaSettings  # noqa: E402
from mpembed_build.toolkit import UnusableError  # noqa: E402

FACTS = "_build_facts.json"  # beside the extensions, for mpembed.info()
KERNELS = "mpembed._bindings.kernels"  # the extension that links the CPU's kernels


class Build(build):
    """Builds the package from nothing but its sources."""

    def run(self) -> None:
        """Remove what an earlier build left, which would be packed; objects are kept elsewhere."""
        shutil.rmtree(Path(self.build_lib, "mpembed"), ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Builds extensions, and the libraries of kernels behind them, from the object cache."""

    def build_extensions(self) -> None:
        """Build all of them; only the one for CUDA may be left out."""
        os.chdir(ROOT)
        try:
            self.build_all()
        except BuildError as error:
            raise CompileError(str(error)) from None

    def build_all(self) -> None:
        """Find the compilers, build, and write down what was built."""
        settings = CudaSettings.read(os.environ)
        self.jobs = host.Compiler()
        self.cuda: cuda.Cuda | None = None
        try:
            self.cuda = cuda.prepare(settings, os.environ, self.jobs)
            facts = self.cuda.facts()
        except UnusableError as reason:
            print(f"building without CUDA: {reason}", flush=True)
            facts = {"built": False, "reason": str(reason)}
            self.extensions: list[Extension] = [e for e in self.extensions if e.name != cuda.NAME]
        self.remove_stale(self.built())
        kernels, on_cuda = self.jobs.kernels(), self.cuda.jobs() if self.cuda else []
        # All at once, so that no compiler waits for another file's linker.
        bindings = [job for extension in self.extensions for job in self.bindings(extension)]
        objects.compile_all([*kernels, *on_cuda, *bindings])
        self.libraries_of = {KERNELS: self.build_library(sdk.LIBRARY, kernels, [])}
        if self.cuda:
            made = self.build_library(sdk.CUDA_LIBRARY, on_cuda, self.cuda.libraries())
            self.libraries_of[cuda.NAME] = made
        for extension in self.extensions:
            self.build_extension(extension)
        sdk.copy_headers(self.built())
        sdk.describe(self.built(), self.distribution.get_version(), "include")
        known = {"cuda": facts, "cpu": self.jobs.facts()}
        self.built(FACTS).write_text(json.dumps(known, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        """Compile what changed, and link."""
        libraries: list[str] = []
        if ext.name in self.libraries_of:
            libraries = [str(self.libraries_of[ext.name]), host.LIBRARIES]
        made = objects.compile_all(self.bindings(ext))
        self.make(self.jobs.link(made, libraries), Path(self.get_ext_fullpath(ext.name)))

    def bindings(self, ext: Extension) -> list[objects.Job]:
        """Return the jobs for what Cython wrote."""
        compiler = self.cuda if self.cuda and ext.name == cuda.NAME else self.jobs
        return [compiler.binding(Path(source)) for source in ext.sources]

    def build_library(self, name: str, jobs: list[objects.Job], libraries: list[str]) -> Path:
        """Build a library that extensions and C++ programs link; return its path."""
        target = self.built("lib", sdk.file_name(name))
        self.make(self.jobs.link_library(target.name, objects.compile_all(jobs), libraries), target)
        return target

    def make(self, command: list[str], target: Path) -> None:
        """Run a linker."""
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")  # a running process may have the old one mapped
        command = [*command, "-o", str(fresh)]
        print(shlex.join(command), flush=True)
        if subprocess.run(command).returncode:
            raise CompileError(f"linking {target.name} failed")
        fresh.replace(target)

    def remove_stale(self, package: Path) -> None:
        """Remove what an earlier build with CUDA left, which must not be packed or imported."""
        if self.cuda is None:
            name = Path(self.get_ext_filename(cuda.NAME)).name
            (package / name).unlink(missing_ok=True)
            (package / "lib" / sdk.file_name(sdk.CUDA_LIBRARY)).unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        """Bring the source tree to the same state, in a build in place."""
        super().copy_extensions_to_source()
        self.copy_file(str(self.built(FACTS)), str(self.source(FACTS)))
        self.mkpath(str(self.source("lib")))
        for library in self.libraries_of.values():
            self.copy_file(str(library), str(self.source("lib", library.name)))
        self.remove_stale(self.source())
        sdk.describe(self.source(), self.distribution.get_version(), "../include")

    def get_outputs(self) -> list[str]:
        """Return the files of this build: extensions, facts, and what C++ programs get."""
        folders = ("lib", "include", "kernels", "cmake", "pkgconfig")
        files = [path for folder in folders for path in self.built(folder).rglob("*.*")]
        own = [str(path) for path in (self.built(FACTS), *files) if path.is_file()]
        return sorted({*super().get_outputs(), *own})

    def get_output_mapping(self) -> dict[str, str]:
        """Return which files of a build in place stand for which built ones."""
        mapping: dict[str, str] = super().get_output_mapping()
        if self.inplace:
            mapping[str(self.built(FACTS))] = str(self.source(FACTS))
            for library in self.built("lib").glob("*.*"):
                mapping[str(library)] = str(self.source("lib", library.name))
            for header in [*sdk.headers(), *sdk.kernel_headers()]:
                mapping[str(self.built(str(header)))] = str(header)
        return mapping

    def built(self, *names: str) -> Path:
        """Return where a file of the package is built."""
        return Path(self.build_lib, "mpembed", *names)

    def source(self, *names: str) -> Path:
        """Return where a file of the package lies in a source tree."""
        package = self.get_finalized_command("build_py").get_package_dir("mpembed")
        return Path(package, *names)


def translated() -> Path:
    """Return where Cython writes C++; it fits the NumPy whose declarations it read."""
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("cython", "numpy")]
    return objects.BUILD / "-".join(versions)


def extensions() -> list[Extension]:
    """Return one extension for each .pyx file, translated to C++ under build/."""
    paths = sorted(Path("mpembed").rglob("*.pyx"))
    if os.environ.get("MPEMBED_CUDA") == "0" or not cuda.present(ROOT):
        paths = [path for path in paths if path != cuda.BINDING]
    declared = objects.BUILD / "declarations"
    declarations.write(sdk.INCLUDE, declared)
    return cythonize(
        [
            Extension(".".join(path.with_suffix("").parts), [str(path)], language="c++")
            for path in paths
        ],
        build_dir=str(translated()),
        include_path=[".", str(declared)],
        language_level=3,
        compiler_directives={"freethreading_compatible": True, "embedsignature": True},
    )


os.chdir(ROOT)
setup(ext_modules=extensions(), cmdclass={"build": Build, "build_ext": BuildExt})
