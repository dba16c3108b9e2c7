"""Builds the extensions; all metadata is in pyproject.toml, how each file is compiled in tools/.

Every file becomes one object in ``build/objs/<hash of compiler and flags>/`` and is compiled again
only when it, a header it includes, the compiler or the flags change. CONTRIBUTING.md lists the
variables of the environment.
"""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from mpembed_build import cuda, host, objects  # noqa: E402
from mpembed_build.settings import BuildError, CudaSettings  # noqa: E402
from mpembed_build.toolkit import UnusableError  # noqa: E402

FACTS = "_build_facts.json"  # beside the extensions, for mpembed.info()


class BuildExt(build_ext):
    """Builds extensions from the object cache."""

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
            # One of an earlier build must not be packed.
            Path(self.get_ext_fullpath(cuda.NAME)).unlink(missing_ok=True)
        for extension in self.extensions:
            self.build_extension(extension)
        self.facts_paths()[0].write_text(json.dumps({"cuda": facts}, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        """Compile what changed, and link."""
        sources = [Path(source) for source in ext.sources]
        libraries: list[str] = []
        if self.cuda and ext.name == cuda.NAME:
            jobs = [*map(self.cuda.binding, sources), *self.cuda.jobs()]
            libraries = self.cuda.libraries()
        else:
            jobs = [*map(self.jobs.binding, sources)]
        if ext.name == "mpembed._core":
            jobs += self.jobs.kernels()
        command = self.jobs.link(objects.compile_all(jobs), libraries)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")  # a running process may have the old one mapped
        command += ["-o", str(fresh)]
        print(shlex.join(command), flush=True)
        if subprocess.run(command).returncode:
            raise CompileError(f"linking {ext.name} failed")
        fresh.replace(target)

    def copy_extensions_to_source(self) -> None:
        """Bring the source tree to the same state, in a build in place."""
        super().copy_extensions_to_source()
        built, source = self.facts_paths()
        self.copy_file(str(built), str(source))
        if self.cuda is None:
            name = Path(self.get_ext_filename(cuda.NAME)).name
            source.with_name(name).unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """Return the files of this build, the facts included."""
        return sorted({*super().get_outputs(), str(self.facts_paths()[0])})

    def get_output_mapping(self) -> dict[str, str]:
        """Return which files of a build in place stand for which built ones."""
        mapping: dict[str, str] = super().get_output_mapping()
        if self.inplace:
            built, source = self.facts_paths()
            mapping[str(built)] = str(source)
        return mapping

    def facts_paths(self) -> tuple[Path, Path]:
        """Return where the facts are built, and where they lie in a source tree."""
        package = self.get_finalized_command("build_py").get_package_dir("mpembed")
        return Path(self.build_lib, "mpembed", FACTS), Path(package, FACTS)


def translated() -> Path:
    """Return where Cython writes C++; it fits the NumPy whose declarations it read."""
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("cython", "numpy")]
    return objects.BUILD / "-".join(versions)


def extensions() -> list[Extension]:
    """Return one extension for each .pyx file, translated to C++ under build/."""
    paths = sorted(Path("mpembed").glob("*.pyx"))
    if os.environ.get("MPEMBED_CUDA") == "0" or not cuda.present(ROOT):
        paths = [path for path in paths if path != cuda.BINDING]
    return cythonize(
        [
            Extension(".".join(path.with_suffix("").parts), [str(path)], language="c++")
            for path in paths
        ],
        build_dir=str(translated()),
        include_path=["."],
        language_level=3,
        compiler_directives={"freethreading_compatible": True, "embedsignature": True},
    )


os.chdir(ROOT)
setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
