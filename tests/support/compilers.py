"""The C++ compilers of this machine that tests compile with: g++ (or CXX), clang++, nvcc."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_GXX = shlex.split(os.environ.get("CXX") or "g++")
_CLANG = ["clang++"] if shutil.which("clang++") and "clang" not in _GXX[0] else []
# C++ compilers by what they are called in a test's name.
CXX: dict[str, list[str]] = {Path(words[0]).name: words for words in (_GXX, _CLANG) if words}
FIRST = next(iter(CXX.values()))
NVCC = shutil.which("nvcc")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Both halves of each file are compiled: for a device (its assembler left out) and for the host.
# nvcc's own files are not pedantic.
NVCC_FLAGS = ["-std=c++17", "-fmad=false", "-Werror", "all-warnings"]
NVCC_FLAGS += ["-Xcompiler", "-Wall,-Wextra,-Werror,-ffp-contract=off"]


def versions() -> list[str]:
    """Return a line a compiler, for the head of a test run."""
    found = [*CXX.values(), *([[NVCC]] if NVCC else [])]
    return [f"{words[0]}: {_version(words)}" for words in found]


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    released = [line for line in lines if "release" in line]
    return (released or lines or ["no version"])[0]


def run(command: Sequence[object], timeout: float = 300, **options: object) -> str:
    """Run a program and return what it prints; its words are the failure's."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return str(done.stdout)


def compile_text(command: Sequence[object], source: Path, text: str, *flags: object) -> None:
    """Compile a source file that holds `text`; the compiler's words are the failure's."""
    source.write_text(text)
    run([*command, *flags, source])


def tool(name: str) -> str:
    """Return a program such as cmake: that of this Python environment, else one on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"there is no {name}: pip install '.[test]'"
    return found


def cmake(source: Path, build: Path, compiler: list[str], *definitions: str) -> None:
    """Configure and build a project for one C++ compiler."""
    command: list[object] = [tool("cmake"), "-S", source, "-B", build, "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_CXX_COMPILER={compiler[0]}"]
    flags = shlex.join([*compiler[1:], *WARNINGS])
    command += [f"-DCMAKE_CXX_FLAGS={flags}", *(f"-D{definition}" for definition in definitions)]
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CXXFLAGS", "CUDACXX")}
    run(command, env=environment)
    run([tool("cmake"), "--build", build, "-j", os.environ.get("MAX_JOBS", "2")], env=environment)
