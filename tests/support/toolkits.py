"""CUDA toolkits to build with that compile nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpembed_build import cuda, toolkit

# A compiler that works, as far as the build can tell; it notes each file it compiles.
NVCC = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *--version*) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  *--list-gpu-code*) printf 'sm_80\\nsm_90\\nsm_120\\n' ;;
  *-dryrun*)
    exec >&2
    printf '#$ PATH="odd\\n#$ TOP=%s/..\\n#$ INCLUDES="-I%s/../include"\\n' "$here" "$here"
    printf '#$ LIBRARIES= "-L%s/../lib64"\\n' "$here" ;;
  *) echo "$*" >>"$here/compiled"
     {fault} ;;
esac
"""


def hide_toolkits(monkeypatch: pytest.MonkeyPatch, system: Path) -> None:
    """Put `system` in the place of this machine's toolkit, and hide wheels and variables."""
    monkeypatch.setattr(toolkit, "SYSTEM", system)
    monkeypatch.setattr(toolkit, "wheels", list)
    for name in ("MPEMBED_WERROR", "CXXFLAGS", "MAX_JOBS", "NVCC_CCBIN", *cuda.VARIABLES):
        monkeypatch.delenv(name, raising=False)


def make_toolkit(root: Path, version: str = "13.0", fault: str = ":") -> Path:
    """Make a toolkit and return its compiler."""
    for name in ("bin", "lib", "include"):
        (root / name).mkdir(parents=True)
    (root / "lib" / "libcudart_static.a").touch()
    (root / "lib" / "libcudart.so.13").touch()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(NVCC.replace("{version}", version).replace("{fault}", fault))
    nvcc.chmod(0o755)
    return nvcc
