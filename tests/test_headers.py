"""Every public header compiles alone, without a warning; the doors also as C."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include"
HEADERS = sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.rglob("*.h"))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
CXX = [*os.environ.get("CXX", "g++").split(), "-std=c++17"]
CC = [*os.environ.get("CC", "gcc").split(), "-std=c11"]


def compile_text(command: list[str], source: Path, text: str, *flags: str) -> None:
    """Compile a source file that holds `text`; the compiler's words are the failure's."""
    source.write_text(text)
    done = subprocess.run(
        [*command, *WARNINGS, f"-I{INCLUDE}", *flags, str(source)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_there_are_headers() -> None:
    assert {"mpembed/api.h", "mpembed/registry.h", "mpembed/philox.h"} <= set(HEADERS)


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header: str, tmp_path: Path) -> None:
    # Twice, since an include guard that does not match guards nothing.
    text = f'#include "{header}"\n#include "{header}"\n'
    compile_text(CXX, tmp_path / "alone.cpp", text, "-fsyntax-only")


@pytest.mark.parametrize("header", ["mpembed/api.h", "mpembed/registry.h"])
def test_the_doors_are_plain_c(header: str, tmp_path: Path) -> None:
    text = f'#include "{header}"\n#include "{header}"\ntypedef int not_empty;\n'
    compile_text(CC, tmp_path / "door.c", text, "-fsyntax-only")


def test_all_headers_in_two_units_of_one_program(tmp_path: Path) -> None:
    """A function that is not inline would be defined twice."""
    everything = "".join(f'#include "{header}"\n' for header in HEADERS)
    compile_text(CXX, tmp_path / "one.cpp", everything, "-c", "-o", str(tmp_path / "one.o"))
    text = f"{everything}int main() {{ return 0; }}\n"
    compile_text(
        CXX, tmp_path / "two.cpp", text, str(tmp_path / "one.o"), "-o", str(tmp_path / "p")
    )


def test_headers_include_no_more_than_the_standard_library() -> None:
    """The arithmetic is for any host and device program: no Python, no DLPack, no framework."""
    foreign = []
    for header in HEADERS:
        for name in re.findall(r'#\s*include\s*["<]([^">]+)', (INCLUDE / header).read_text()):
            standard = re.fullmatch(r"[a-z_]+(\.h)?", name) and name != "Python.h"
            if not (standard or name.startswith(("mpembed/", "cuda"))):
                foreign.append((header, name))
    assert foreign == []
