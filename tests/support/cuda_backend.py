"""The CUDA kernels that the tests run: installed ones on a device, or an emulation of them.

``MPEMBED_TEST_CUDA`` says which: ``emulation`` (the default) compiles ``kernels/cuda`` with g++
against ``tests/simt``; ``installed`` is the package's own extension, on a GPU or a stand-in for the
CUDA runtime; ``none`` leaves all tests of a device out.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import scripts
from folders import ROOT, TESTS

from mpembed import _bindings, devices
from mpembed_build import declarations

KERNELS = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
CHOICES = ("emulation", "installed", "none")


def choice() -> str:
    """Return which kernels are wanted."""
    wanted = os.environ.get("MPEMBED_TEST_CUDA", "emulation")
    if wanted not in CHOICES:
        raise ValueError(f"MPEMBED_TEST_CUDA must be one of {', '.join(CHOICES)}, got {wanted!r}")
    return wanted


def missing() -> str | None:
    """Make `mpembed._bindings.cuda` importable; return why there is none, or None."""
    wanted = choice()
    if wanted == "none":
        return "MPEMBED_TEST_CUDA is none"
    if wanted == "emulation":
        reason = _cannot_emulate()
        if reason is not None:
            return reason
        _put_first(emulation())
    try:
        devices.cuda_count()
    except RuntimeError as error:
        if wanted == "installed":
            raise
        return str(error)
    return None


def _put_first(extension: Path) -> None:
    """Let `mpembed._bindings.cuda` be this file, even if an installed one was loaded before."""
    if str(extension.parent) not in _bindings.__path__:
        _bindings.__path__.insert(0, str(extension.parent))
    loaded = sys.modules.get("mpembed._bindings.cuda")
    if loaded is not None and loaded.__file__ != str(extension):
        del sys.modules["mpembed._bindings.cuda"]
        delattr(_bindings, "cuda")


def _cannot_emulate() -> str | None:
    if not sys.platform.startswith("linux"):
        return "the emulation needs Linux"
    if importlib.util.find_spec("Cython") is None:
        return "the emulation needs Cython"
    if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        return "the emulation needs g++"
    return None


def emulation() -> Path:
    """Return the extension of the emulated kernels, compiled if something has changed."""
    folder = _simt().cache_folder() / "mpembed"
    folder.mkdir(exist_ok=True)
    with _locked(folder / "lock"):
        binding = _translated(folder)
    return with_kernels([binding], folder / f"cuda{sysconfig.get_config_var('EXT_SUFFIX')}")


def with_kernels(sources: Sequence[Path], out: Path) -> Path:
    """Compile sources and all emulated kernels into one library.

    The flags are always the same, and of pytest-xdist's workers one compiles at a time, so each
    kernel is compiled once.
    """
    flags = ["-isystem", sysconfig.get_path("include"), "-Wno-unused-function"]
    flags += ['-DMPE_CUDA_ARCHS="emulated"']
    simt = _simt()
    with _locked(simt.cache_folder() / "kernels.lock"):
        done: Path = simt.build([*KERNELS, *sources], out, extra=flags)
    return done


def _simt() -> ModuleType:
    return scripts.load(TESTS / "simt" / "build.py")


def _translated(folder: Path) -> Path:
    """Return the C++ of the binding, translated again only if the binding is newer."""
    out = folder / "cuda.cpp"
    declarations.write(ROOT / "include", folder)
    inputs = [ROOT / "mpembed" / "_bindings" / "cuda.pyx", folder / declarations.PXD]
    if not out.is_file() or any(out.stat().st_mtime < path.stat().st_mtime for path in inputs):
        command = [sys.executable, "-m", "cython", "-3", "--cplus", "-I", str(folder)]
        command += ["--module-name", "mpembed._bindings.cuda", "-o", str(out), str(inputs[0])]
        subprocess.run(command, check=True)
    return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
