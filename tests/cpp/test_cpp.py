"""tests/cpp, the C++ tests of headers and library: built by CMake and run by CTest."""

from __future__ import annotations

import re
from pathlib import Path

import compilers
import pytest
from compilers import CXX, NVCC
from folders import ROOT

import mpembed as mpe
from mpembed import registry
from mpembed._bindings import kernels

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


@pytest.mark.exhaustive
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
def test_the_manuals_examples_run(compiler: str, package_alone: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cpp.md").read_text()
    blocks = re.findall(r"^```cpp\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    lib = package_alone / "mpembed" / "lib"
    flags = ["-std=c++17", *compilers.WARNINGS, f"-I{lib.with_name('include')}"]
    flags += ["-ffp-contract=off"]
    link = [f"-L{lib}", "-lmpembed", f"-Wl,-rpath,{lib}"]
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 9, 4)], optimizer=mpe.SGD())
    emb.save(tmp_path / "model.mpembed")
    for block in blocks:
        includes, code = block.split("\n\n", 1)
        (tmp_path / "shown.cpp").write_text(f"{includes}\nint main() {{\n{code}}}\n")
        source, program = tmp_path / "shown.cpp", tmp_path / "shown"
        compilers.run([*CXX[compiler], *flags, source, *link, "-o", program])
        compilers.run([program], cwd=tmp_path)


def test_the_manual_lists_every_parameter() -> None:
    text = (ROOT / "docs" / "cpp.md").read_text()
    for name, kind in registry.OPTIMIZERS.items():
        own = [f"`{one}`" for one in kernels.parameter_names(kind)[2:]]
        assert f"| `{name}` | {', '.join(own) or 'none'} |" in text


def test_a_check_that_does_not_hold_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.cpp").write_text('#include "check.h"\nCASE(bad) { CHECK(1 + 1 == 3); }\n')
    command = [*compilers._GXX, "-std=c++17", f"-I{SOURCES}", tmp_path / "bad.cpp"]
    compilers.run([*command, SOURCES / "check.cpp", "-o", tmp_path / "bad"])
    with pytest.raises(AssertionError, match=r"1 \+ 1 == 3 does not hold"):
        compilers.run([tmp_path / "bad"])
    with pytest.raises(AssertionError, match="0 cases"):
        compilers.run([tmp_path / "bad", "none"])
