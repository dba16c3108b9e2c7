"""What the emulation of a CUDA device counts; `cuda_backend` must have chosen it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import cuda_backend
import pytest

alone = pytest.mark.skipif(
    cuda_backend.choice() != "emulation", reason="only the emulation counts memory and launches"
)


def library() -> ctypes.CDLL:
    """Return the loaded library: the kernels, the emulation and its CUDA runtime."""
    from mpembed._bindings import cuda as extension

    return ctypes.CDLL(extension.__file__)


def live_bytes() -> int:
    """Return how much memory of devices is in use."""
    count = library().simt_live_bytes
    count.restype = ctypes.c_int64
    return int(count())


def launches(device: int | None = None) -> int:
    """Return how many kernels were launched: all, or those while a device was the current one."""
    count = library().simt_launches if device is None else library().simt_launches_on
    count.restype, count.argtypes = ctypes.c_int64, [] if device is None else [ctypes.c_int]
    return int(count() if device is None else count(device))


class Counts(NamedTuple):
    """What a process has asked of the runtime; what CUB asks it for is not counted."""

    launches: int
    fills: int
    copies: int
    allocations: int
    calls: int  # all of these and all others

    def since(self, before: Counts) -> Counts:
        """Return what was added to an earlier count."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


def counts() -> Counts:
    """Return what the process has asked of the runtime so far."""
    loaded = library()
    found = []
    for name in Counts._fields:
        count = getattr(loaded, f"simt_{name}")
        count.restype, count.argtypes = ctypes.c_int64, []
        found.append(int(count()))
    return Counts(*found)


def default_pool_uses() -> int:
    """Return how often memory came from a device's default pool, which is the whole process's."""
    count = library().simt_default_pool_uses
    count.restype = ctypes.c_int64
    return int(count())
