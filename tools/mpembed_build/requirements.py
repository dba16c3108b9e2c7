"""What the build may need in addition to ``build-system.requires``: a compiler for CUDA."""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from mpembed_build import cuda, host, toolkit
from mpembed_build.settings import BuildError, CudaSettings

# All from one release. Without that, pip would install a newer nvvm, whose PTX the compiler's ptxas
# does not know. An older release of the series also lets more drivers run the PTX.
WHEELS = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
]
_PLATFORMS = ("linux-x86_64", "linux-aarch64")


def compiler_wheels(environment: Mapping[str, str], root: Path) -> list[str]:
    """Return the wheels to install before the build; none where it does not need them."""
    settings = CudaSettings.read(environment)
    if settings.mode == "0" or not cuda.present(root) or not wheels_exist():
        return []
    try:
        compiler = cuda.host_compiler(host.find_compiler(environment), environment)
        toolkit.find(settings, environment, compiler, root / cuda.PROBES)
    except BuildError:
        return []  # the build reports what is wrong; a wheel would not help
    except toolkit.UnusableError as reason:
        print(
            f"mpembed: {reason}: the build takes NVIDIA's compiler from wheels "
            "(MPEMBED_CUDA=0 builds without CUDA)",
            file=sys.stderr,
        )
        return WHEELS
    return []


def wheels_exist() -> bool:
    """Return whether there are wheels of the compiler for this platform."""
    return sysconfig.get_platform() in _PLATFORMS and platform.libc_ver()[0] == "glibc"
