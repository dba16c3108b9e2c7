"""What C++ programs find of the package: paths, CMake, pkg-config, and that it may be moved."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import compilers
import pytest
from compilers import CXX, tool
from folders import ROOT

import mpembed as mpe

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PROGRAM = """
#include <mpembed/api.h>
#include <stdio.h>
int main() { printf("%s %d", mpe_cpu_backend()->name, (int)mpe_row_bytes(MPE_format_int4, 16)); }
"""


def test_paths_of_the_installed_package() -> None:
    assert Path(mpe.get_include(), "mpembed", "api.h").is_file()
    assert Path(mpe.get_cmake_dir(), "mpembedConfig.cmake").is_file()
    assert Path(mpe.get_pkgconfig_dir(), "mpembed.pc").is_file()
    assert mpe.__version__ == VERSION


def test_the_wheel_has_every_header_and_one_library(package_alone: Path) -> None:
    package = package_alone / "mpembed"
    found = {path.relative_to(package) for path in package.joinpath("include").rglob("*.*")}
    assert found == {path.relative_to(ROOT) for path in (ROOT / "include").rglob("*.h")}
    for name in found:
        assert (package / name).read_bytes() == (ROOT / name).read_bytes()
    names = {path.stem for path in package.joinpath("lib").iterdir()}
    assert {"libmpembed"} <= names <= {"libmpembed", "libmpembed_cuda"}
    # The kernels are there once: the extension links them.
    (core,) = package.joinpath("_bindings").glob("kernels.*.so")
    (library,) = package.joinpath("lib").glob("libmpembed.*")
    assert b"MPEMBED_NUM_THREADS" in library.read_bytes()
    assert b"MPEMBED_NUM_THREADS" not in core.read_bytes()


def test_python_runs_from_wherever_the_package_lies(package_alone: Path, tmp_path: Path) -> None:
    moved = tmp_path / "with blank" / "site"
    shutil.copytree(package_alone, moved)
    text = "import mpembed as m; print(m.__file__, m.get_include(), m.get_cmake_dir())"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(moved)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package = moved / "mpembed"
    assert done.stdout == f"{package / '__init__.py'} {package / 'include'} {package / 'cmake'}\n"


def configure(folder: Path, text: str, *definitions: str) -> str:
    """Configure a project of a few lines; return what CMake prints."""
    folder.mkdir(exist_ok=True)
    head = "cmake_minimum_required(VERSION 3.18...4.0)\nproject(p LANGUAGES CXX)\n"
    (folder / "CMakeLists.txt").write_text(head + text)
    command = [tool("cmake"), "-S", folder, "-B", folder / "build", "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *definitions]
    return compilers.run(command)


def test_cmake_takes_versions_and_components_by_their_rules(
    package_alone: Path, tmp_path: Path
) -> None:
    minor = VERSION.rpartition(".")[0]
    cases = {
        "": 1,
        VERSION: 1,
        f"{VERSION} EXACT": 1,
        minor: 1,
        minor.partition(".")[0]: 1,
        "0.0": 0,
        f"{minor}.99": 0,
        f"{minor}9": 0,
        "99": 0,
        "COMPONENTS nonsense": 0,
        "OPTIONAL_COMPONENTS nonsense": 1,
    }
    lines = [
        f"find_package(mpembed {words} CONFIG QUIET)\n"
        f'message(STATUS "case {i}: ${{mpembed_FOUND}} ${{mpembed_NOT_FOUND_MESSAGE}}")\n'
        "unset(mpembed_FOUND)\nunset(mpembed_NOT_FOUND_MESSAGE)\n"
        f'set(mpembed_DIR {package_alone / "mpembed" / "cmake"} CACHE PATH "" FORCE)\n'
        for i, words in enumerate(cases)
    ]
    found = f"-Dmpembed_DIR={package_alone / 'mpembed' / 'cmake'}"
    shown = configure(tmp_path, "".join(lines), found)
    for i, (words, good) in enumerate(cases.items()):
        (line,) = [line for line in shown.splitlines() if f"case {i}:" in line]
        assert line.split()[3] in (("1", "TRUE") if good else ("0", "FALSE")), (words, line)
    assert "this build of mpembed has no component nonsense" in shown


def test_cmake_finds_it_by_its_prefix(package_alone: Path, tmp_path: Path) -> None:
    """As scikit-build-core has it from the entry point."""
    points = importlib.metadata.entry_points(group="cmake.prefix", name="mpembed")
    assert {point.value for point in points} <= {"mpembed"}
    (recorded,) = package_alone.glob("mpembed-*.dist-info/entry_points.txt")
    assert "[cmake.prefix]\nmpembed = mpembed\n" in recorded.read_text()
    assert "[pkg_config]\nmpembed = mpembed.pkgconfig\n" in recorded.read_text()
    text = 'find_package(mpembed CONFIG REQUIRED)\nmessage(STATUS "at ${mpembed_DIR}")\n'
    prefix = package_alone / "mpembed"
    shown = configure(tmp_path, text, f"-DCMAKE_PREFIX_PATH={prefix}")
    assert f"at {prefix / 'cmake'}" in shown


def test_cmake_says_that_a_tree_was_not_built(package_alone: Path, tmp_path: Path) -> None:
    shutil.copytree(package_alone / "mpembed", tmp_path / "mpembed")
    shutil.rmtree(tmp_path / "mpembed" / "lib")
    found = f"-Dmpembed_DIR={tmp_path / 'mpembed' / 'cmake'}"
    with pytest.raises(AssertionError, match="has no library"):
        configure(tmp_path / "p", "find_package(mpembed CONFIG REQUIRED)\n", found)


def test_cmake_finds_a_build_in_place(tmp_path: Path) -> None:
    """Whichever way this package was installed: the headers may lie beside it."""
    (tmp_path / "p.cpp").write_text(PROGRAM)
    text = "find_package(mpembed CONFIG REQUIRED)\nadd_executable(p p.cpp)\n"
    text += "target_link_libraries(p PRIVATE mpembed::mpembed)\n"
    configure(tmp_path, text, f"-Dmpembed_DIR={mpe.get_cmake_dir()}")
    compilers.run([tool("cmake"), "--build", tmp_path / "build"])
    assert compilers.run([tmp_path / "build" / "p"]) == "cpu 12"


def pkgconf(folder: str | Path, *words: str) -> list[str]:
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    return compilers.run([tool("pkgconf"), *words], env=environment).split()


@pytest.mark.parametrize("compiler", CXX)
@pytest.mark.parametrize("where", ["wheel", "installed"])
def test_pkgconfig(compiler: str, where: str, package_alone: Path, tmp_path: Path) -> None:
    wheel = package_alone / "mpembed" / "pkgconfig"
    folder = wheel if where == "wheel" else mpe.get_pkgconfig_dir()
    assert pkgconf(folder, "--modversion", "mpembed") == [VERSION]
    flags = pkgconf(folder, "--cflags", "--libs", "mpembed")
    (libraries,) = pkgconf(folder, "--variable=libdir", "mpembed")
    (tmp_path / "p.cpp").write_text(PROGRAM)
    command = [*CXX[compiler], tmp_path / "p.cpp", *flags, f"-Wl,-rpath,{libraries}"]
    compilers.run([*command, "-o", tmp_path / "p"])
    assert compilers.run([tmp_path / "p"]) == "cpu 12"
    assert "-ffp-contract=off" in pkgconf(folder, "--cflags", "mpembed-headers")


def test_no_file_for_builds_holds_an_absolute_path(package_alone: Path) -> None:
    files = [*package_alone.rglob("*.cmake"), *package_alone.rglob("*.pc")]
    assert len(files) >= 4
    for path in files:
        words = path.read_text().replace("=", " ").replace('"', " ").split()
        assert not [word for word in words if word.startswith("/")], path
