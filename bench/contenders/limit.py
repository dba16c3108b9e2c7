"""Steps of the limit: the same rows are read, changed or copied without any arithmetic.

``limit.cpp`` is compiled into ``build/`` at the first use; `missing` says why it cannot be.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from rounds import LIMIT, Contender

SOURCE = Path(__file__).with_name("limit.cpp")
BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
Pointer = ctypes.c_void_p
Int = ctypes.c_int64
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "limit_allocate": (Pointer, [Int]),
    "limit_free": (None, [Pointer, Int]),
    "limit_gather": (ctypes.c_double, [Pointer, Int, Pointer, Int, ctypes.c_int, Pointer]),
    "limit_modify": (
        ctypes.c_double,
        [Pointer, Int, Pointer, Int, Pointer, Pointer, ctypes.c_int],
    ),
    "limit_copy": (ctypes.c_double, [Pointer, Pointer, Int, ctypes.c_int]),
}


def compiler() -> list[str]:
    """Return the C++ compiler's command, or nothing."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("g++", "clang++", "c++") if shutil.which(name)), [])


@functools.cache
def missing() -> str | None:
    """Return why there is no limit, or None."""
    if not compiler():
        return "limit: no C++ compiler"
    try:
        library()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"limit: {error}"
    return None


@functools.cache
def library() -> Any:
    """Return the compiled library."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    made = BUILD / f"limit-{key}.so"
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = made.with_suffix(f".{os.getpid()}")
        subprocess.run([*compiler(), *FLAGS, str(SOURCE), "-o", str(fresh)], check=True)
        fresh.replace(made)
    loaded = ctypes.CDLL(str(made))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


class Memory:
    """An array on huge pages."""

    def __init__(self, size: int) -> None:
        self.bytes = max(size, 1)
        self.address = library().limit_allocate(self.bytes)
        if not self.address:
            raise MemoryError(f"{self.bytes} bytes for the limit")

    def __del__(self) -> None:
        if getattr(self, "address", None):
            library().limit_free(self.address, self.bytes)


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


def gather(rows: Memory, row_bytes: int, batches: list[Any], threads: int) -> Contender:
    """Return reads of the rows of each batch. `batches` hold row numbers across all tables."""
    sink = np.zeros(1, np.uint64)

    def run(i: int) -> float:
        x = batches[i % len(batches)]
        return float(
            library().limit_gather(
                rows.address, row_bytes, _address(x), len(x), threads, _address(sink)
            )
        )

    return Contender(LIMIT, run, reports=True)


def split_by_owner(indices: np.ndarray[Any, Any], threads: int) -> tuple[Any, Any]:
    """Return the rows ordered by their thread, and where the rows of each thread begin.

    Each row belongs to one thread, so no two threads change it at the same time.
    """
    owner = indices % threads
    parts = [indices[owner == t] for t in range(threads)]
    bounds = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts), bounds.astype(np.int64)


def modify(
    rows: tuple[Memory, int],
    state: tuple[Memory, int],
    batches: list[Any],
    threads: int,
    whole: bool,
) -> Contender:
    """Return changes of the rows and the optimizer's state of each batch, after a read.

    `rows` and `state` are each the memory and the bytes of a row in it. With `whole`, the read is
    timed too.
    """
    streams = [split_by_owner(x, threads) for x in batches]
    before = gather(*rows, batches, threads)

    def run(i: int) -> float:
        x, bounds = streams[i % len(streams)]
        return float(
            library().limit_modify(
                *(rows[0].address, rows[1], state[0].address, state[1]),
                *(_address(x), _address(bounds), threads),
            )
        )

    if whole:
        return Contender(LIMIT, lambda i: before.run(i) + run(i), reports=True)
    return Contender(LIMIT, run, prepare=before.run, reports=True)


def copy(source: Memory, target: Memory, threads: int) -> Contender:
    """Return copies from one memory to the other."""

    def run(_: int) -> float:
        size = min(source.bytes, target.bytes)
        return float(library().limit_copy(target.address, source.address, size, threads))

    return Contender(LIMIT, run, reports=True)
