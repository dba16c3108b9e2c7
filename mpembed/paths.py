"""Where C++ programs find headers, libraries and build files; see ``docs/cpp.md``."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """Return the directory to put on a C++ compiler's path for ``#include <mpembed/...>``.

    That of the installed package, or the source tree's where it was installed in place.
    """
    installed = _PACKAGE / "include"
    return str(installed if installed.is_dir() else _PACKAGE.parent / "include")


def kernel_headers() -> str:
    """Return the folder of the kernels' headers, behind which optimizers of one's own compile."""
    installed = _PACKAGE / "kernels"
    return str(installed if installed.is_dir() else _PACKAGE.parent / "kernels")


def get_cmake_dir() -> str:
    """Return the directory of ``mpembedConfig.cmake``, for CMake's ``mpembed_DIR``."""
    return str(_PACKAGE / "cmake")


def get_pkgconfig_dir() -> str:
    """Return the directory of ``mpembed.pc``, for ``PKG_CONFIG_PATH``."""
    return str(_PACKAGE / "pkgconfig")
