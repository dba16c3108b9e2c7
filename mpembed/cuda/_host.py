"""The CPU's part of an optimizer, by the compiler that this machine has."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mpembed._bindings import contract, kernels
from mpembed.cuda import _code_cache
from mpembed.cuda._sources import CompileError, Source, failed, headers_digest, include_paths
from mpembed.devices import build_facts

_PROBED, _UNTOUCHED = 4096, 0x7FA5A5A5  # places looked at on either side, and bits that none has


@dataclass(frozen=True)
class CpuPart:
    """The library of an optimizer's functions, which stays loaded.

    Attributes
    ----------
    code : bytes
        Of the library.
    coefficients, step : int
        Addresses of its functions.
    """

    code: bytes
    coefficients: int
    step: int


def compiler() -> list[str] | None:
    """Return the C++ compiler's command: ``CXX``, g++ or clang++; None if there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    return None


def build(source: Source, command: list[str]) -> CpuPart:
    """Return an optimizer compiled for the instruction set that the CPU's kernels run at.

    Raises
    ------
    CompileError
        If the source is not right.
    """
    facts = build_facts("cpu")
    flags = [*facts["flags"], *facts["levels"][kernels.LEVEL], f"-DMPE_ISA={kernels.LEVEL}"]
    unit = source.for_cpu()
    what = {"compiler": _identity(*command), "flags": flags, "unit": unit}
    what["headers"] = headers_digest()

    def kept() -> Path:
        return _code_cache.kept(".so", what, lambda: _compiled(source, unit, [*command, *flags]))

    def load(path: Path) -> ctypes.CDLL:
        return ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)

    path = kept()
    try:
        library = load(path)
    except OSError:  # damaged
        path.unlink(missing_ok=True)
        path = kept()
        library = load(path)
    _check_coefficients(source, library)
    addresses = (
        ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        for name in ("mpe_own_coefficients", "mpe_own_step")
    )
    return CpuPart(path.read_bytes(), *addresses)


def _check_coefficients(source: Source, library: ctypes.CDLL) -> None:
    """Raise CompileError where `coefficients` writes others than there are."""
    parameters = np.full(contract.MAX_PARAMETERS, 0.5)
    written = np.full(2 * _PROBED, _UNTOUCHED, np.uint32)
    library.mpe_own_coefficients(
        ctypes.c_void_p(parameters.ctypes.data),
        ctypes.c_int32(0),
        ctypes.c_uint64(1),
        ctypes.c_void_p(written[_PROBED:].ctypes.data),
    )
    for at in (np.flatnonzero(written != _UNTOUCHED) - _PROBED).tolist():
        if not 0 <= at < contract.MAX_COEFFICIENTS:
            raise CompileError(
                f"coefficients() of optimizer {source.name!r} writes c[{at}], and there is room "
                f"for {contract.MAX_COEFFICIENTS}: c[0] .. c[{contract.MAX_COEFFICIENTS - 1}]"
            )


@cache
def _identity(*command: str) -> str:
    """Return what changes with the compiler."""
    told = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if told.returncode != 0:
        raise RuntimeError(
            f"{shlex.join(command)} does not run: {told.stderr.strip()}: set CXX to a compiler of "
            "C++17"
        )
    return f"{shlex.join(command)}\n{shutil.which(command[0])}\n{told.stdout}"


def _compiled(source: Source, unit: str, command: list[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mpembed-") as folder:
        file, library = Path(folder, "own.cpp"), Path(folder, "own.so")
        file.write_text(unit)
        paths = [f"-I{path}" for path in include_paths()]
        done = subprocess.run(
            [*command, *paths, "-shared", str(file), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise failed(source, shlex.join(command[:1]), done.stderr)
        return library.read_bytes()
