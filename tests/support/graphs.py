"""The CUDA runtime with graphs: the emulation's, or the one of a device."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import NoReturn

import cuda_backend
import pytest

from mpembed_gpu.runtime import GLOBAL, INVALIDATED, RELAXED, VOID, Graph, Runtime

__all__ = ["GLOBAL", "INVALIDATED", "RELAXED", "VOID", "Graph", "Runtime", "runtime"]


def _give_up(reason: str) -> NoReturn:
    """Skip; on a real device, where graphs can be made, fail."""
    with contextlib.suppress(OSError):
        if ctypes.CDLL("libcuda.so.1").cuInit(0) == 0 and cuda_backend.choice() == "installed":
            pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def runtime() -> Iterator[Runtime]:
    """Yield the runtime; skip where it knows no graphs. The fixture ``cuda`` chose the kernels."""
    try:
        made = Runtime()
    except OSError as error:
        _give_up(f"no graphs: {error}")
    if not made.has_graphs:
        _give_up("the CUDA runtime knows no graphs")
    try:
        yield made
    finally:
        made.close()
