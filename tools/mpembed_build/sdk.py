"""What C++ programs use: libraries, headers, and the files for CMake and pkg-config.

In a wheel they are all in the package: ``lib``, ``include``, ``kernels`` (headers), ``cmake`` and
``pkgconfig``. In a build in place the headers stay beside the package.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

LIBRARY, CUDA_LIBRARY = "mpembed", "mpembed_cuda"
INCLUDE, KERNELS = Path("include"), Path("kernels")
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
# A program may be used with a later library of the same minor release. Before 1.0, a minor release
# may change anything.
CMAKE_VERSION = """\
set(PACKAGE_VERSION "{version}")
set(_minor "${{PACKAGE_FIND_VERSION_MAJOR}}.${{PACKAGE_FIND_VERSION_MINOR}}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION
    OR (PACKAGE_FIND_VERSION_COUNT GREATER 1 AND NOT _minor STREQUAL "{minor}"))
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
if(CMAKE_SIZEOF_VOID_P AND NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(PACKAGE_VERSION_UNSUITABLE TRUE)
endif()
"""
PKGCONFIG = """\
prefix=${{pcfiledir}}/..
includedir=${{prefix}}/{include}
libdir=${{prefix}}/lib

Name: {name}
Description: {description}
Version: {version}
Cflags: -I${{includedir}}{flags}
"""


def file_name(library: str) -> str:
    """Return the file name of a library."""
    return f"lib{library}{SUFFIX}"


def headers() -> list[Path]:
    """Return all headers, relative to the root of the project."""
    return sorted(INCLUDE.rglob("*.h"))


def kernel_headers(root: Path = Path()) -> list[Path]:
    """Return the headers of the kernels, behind which an optimizer of a user's own compiles.

    Relative to the root of the project, as those of `headers`.
    """
    patterns = ("*.h", "cpu/**/*.h", "cuda/*.h", "cuda/*.cuh")
    found = [path for pattern in patterns for path in (root / KERNELS).glob(pattern)]
    return sorted(path.relative_to(root) for path in found)


def copy_headers(package: Path) -> None:
    """Copy all headers into a built package, and remove those of an earlier build."""
    for folder in (INCLUDE, KERNELS):
        shutil.rmtree(package / folder, ignore_errors=True)
    for header in [*headers(), *kernel_headers()]:
        target = package / header
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(header, target)


def describe(package: Path, version: str, include: str) -> None:
    """Write the files that depend on the version and on which libraries there are.

    Parameters
    ----------
    package : Path
        The package, built or in the source tree, with its libraries.
    version : str
        The version of the project.
    include : str
        The folder of the headers, relative to the package.
    """
    files = pkgconfig_files(version, include, (package / "lib" / file_name(CUDA_LIBRARY)).is_file())
    shutil.rmtree(package / "pkgconfig", ignore_errors=True)
    for folder in ("cmake", "pkgconfig"):
        (package / folder).mkdir(parents=True, exist_ok=True)
    (package / "cmake" / "mpembedConfigVersion.cmake").write_text(cmake_version(version))
    for name, text in files.items():
        (package / "pkgconfig" / f"{name}.pc").write_text(text)


def cmake_version(version: str) -> str:
    """Return the file that tells CMake the version, as far as CMake can express it."""
    release = re.match(r"\d+(\.\d+)*", version)
    if release is None:
        raise ValueError(f"the version {version!r} does not begin with numbers")
    numbers = [*release.group().split("."), "0", "0"]
    return CMAKE_VERSION.format(version=release.group(), minor=".".join(numbers[:2]))


def pkgconfig_files(version: str, include: str, cuda: bool) -> dict[str, str]:
    """Return the files for pkg-config by package name; they hold no absolute path."""

    def text(name: str, description: str, flags: str = "") -> str:
        return PKGCONFIG.format(
            name=name, description=description, version=version, include=include, flags=flags
        )

    files = {
        "mpembed-headers": text(
            "mpembed-headers",
            "The arithmetic of mixed-precision embedding tables, header only",
            " -ffp-contract=off",
        ),
        "mpembed": text("mpembed", "Kernels for mixed-precision embedding tables with a cache")
        + f"Libs: -L${{libdir}} -l{LIBRARY}\n",
    }
    if cuda:
        files["mpembed-cuda"] = (
            text("mpembed-cuda", "The same kernels for CUDA devices")
            + f"Requires: mpembed\nLibs: -L${{libdir}} -l{CUDA_LIBRARY}\n"
        )
    return files
