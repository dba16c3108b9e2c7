"""tests/cpp, the C++ tests of headers and library: built by CMake and run by CTest."""

from __future__ import annotations

import re
from pathlib import Path

import compilers
import pytest
from compilers import CXX, NVCC
from folders import ROOT

SOURCES = Path(__file__).parent


def cases() -> int:
    files = [path.read_text() for path in SOURCES.glob("*.cpp")]
    return sum(len(re.findall(r"^CASE\(", text, re.MULTILINE)) for text in files)


def ctest(build: Path) -> None:
    """Run every case; those that fail say why."""
    shown = compilers.run([compilers.tool("ctest"), "--output-on-failure"], cwd=build)
    assert re.search(rf"100% tests passed.* out of {cases()}\b", shown), shown


def found(package: Path) -> str:
    return f"mpembed_DIR={package / 'mpembed' / 'cmake'}"


@pytest.mark.parametrize("compiler", CXX)
def test_headers_and_library(compiler: str, package_alone: Path, tmp_path: Path) -> None:
    compilers.cmake(SOURCES, tmp_path, CXX[compiler], found(package_alone))
    ctest(tmp_path)


@pytest.mark.parametrize("compiler", CXX)
def test_optimised(compiler: str, package_alone: Path, tmp_path: Path) -> None:
    """With instructions that fuse: the target's own flags keep the arithmetic as it is written."""
    command = [*CXX[compiler], "-O3", "-march=native"]
    compilers.cmake(SOURCES, tmp_path, command, found(package_alone))
    ctest(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_headers_by_nvcc(package_alone: Path, tmp_path: Path) -> None:
    """What nvcc makes of them for the host."""
    definitions = [found(package_alone), f"CMAKE_CUDA_COMPILER={NVCC}", "BY_NVCC=ON"]
    compilers.cmake(SOURCES, tmp_path, compilers._GXX, *definitions)
    ctest(tmp_path)


@pytest.mark.parametrize("compiler", CXX)
def test_the_manuals_example_compiles(compiler: str, package_alone: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cpp.md").read_text()
    blocks = re.findall(r"^```cpp\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        includes, code = block.split("\n\n", 1)
        source = f"{includes}\nvoid shown() {{\n{code}}}\n"
        (tmp_path / "shown.cpp").write_text(source)
        include = f"-I{package_alone / 'mpembed' / 'include'}"
        flags = ["-std=c++17", *compilers.WARNINGS, include]
        compilers.run([*CXX[compiler], *flags, "-fsyntax-only", tmp_path / "shown.cpp"])


def test_a_check_that_does_not_hold_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.cpp").write_text('#include "check.h"\nCASE(bad) { CHECK(1 + 1 == 3); }\n')
    command = [*compilers._GXX, "-std=c++17", f"-I{SOURCES}", tmp_path / "bad.cpp"]
    compilers.run([*command, SOURCES / "check.cpp", "-o", tmp_path / "bad"])
    with pytest.raises(AssertionError, match=r"1 \+ 1 == 3 does not hold"):
        compilers.run([tmp_path / "bad"])
    with pytest.raises(AssertionError, match="0 cases"):
        compilers.run([tmp_path / "bad", "none"])
