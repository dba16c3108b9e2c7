"""A stub of the CUDA runtime library, which counts the calls of a program and runs nothing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("stub_runtime.cpp")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra"]
_SYMBOL = re.compile(r"\bU ((?:__)?cuda\w+)(?:@(\S+))?$", re.MULTILINE)
_DEFINED = re.compile(r"^\S.*?\b((?:__)?cuda\w+)\(", re.MULTILINE)


def needed(library: Path) -> dict[str, str]:
    """Return the functions of the runtime that a library needs, and the version of each."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    return dict(_SYMBOL.findall(listing.stdout))


def build(
    compiler: Sequence[str], include: Iterable[str], libraries: Iterable[Path], folder: Path
) -> Path:
    """Build the stub that some libraries need; return the folder for LD_LIBRARY_PATH.

    Parameters
    ----------
    compiler : sequence of str
        Of C++.
    include : iterable of str
        Folders of the toolkit's headers.
    libraries : iterable of Path
        What is linked to the runtime, as a shared library.
    folder : Path
        Where to build.
    """
    wanted: dict[str, str] = {}
    for library in libraries:
        wanted |= needed(library)
    (version,) = set(wanted.values())  # such as libcudart.so.13, the library's own name
    folder.mkdir(parents=True, exist_ok=True)
    others = folder / "others.cpp"
    others.write_text(_others(sorted(set(wanted) - defined(SOURCE.read_text()))))
    exports = folder / "exports.map"
    exports.write_text(f"{version} {{ global: cuda*; __cuda*; stub_*; local: *; }};\n")
    command = [*compiler, *FLAGS, *(f"-isystem{path}" for path in include)]
    command += [f"-Wl,-soname,{version}", f"-Wl,--version-script={exports}"]
    subprocess.run([*command, str(SOURCE), str(others), "-o", str(folder / version)], check=True)
    return folder


def defined(source: str) -> set[str]:
    """Return the functions of the runtime that the stub's source defines."""
    return set(_DEFINED.findall(source))


def _others(names: Iterable[str]) -> str:
    """Return functions that only count themselves; their arguments are not looked at."""
    lines = ['extern "C" {', "void stub_count(const char* name);"]
    lines += [f'int {name}() {{ return stub_count("{name}"), 0; }}' for name in names]
    return "\n".join([*lines, "}", ""])
