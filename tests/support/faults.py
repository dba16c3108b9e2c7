"""Faults of the C library's calls, in a process that `fault_shim.cpp` was preloaded into."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import programs
from compilers import CXX, run
from folders import TESTS

FAIL, SHORT, KILL = range(3)
EVERY_LATER = 2**62
_LIBRARY = ctypes.CDLL(None)


def build(folder: Path) -> Path:
    """Compile the library that is preloaded; return it."""
    library = folder / "faults.so"
    compiler = next(iter(CXX.values()))
    source = TESTS / "faults" / "fault_shim.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    run([*compiler, *flags, source, "-o", library, "-ldl"])
    return library


def call(library: Path, program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a Python program with the library preloaded."""
    return programs.call(library.parent, program, *arguments, LD_PRELOAD=str(library))


@dataclass
class Fault:
    """Calls of one function that fail in this process while it is entered.

    Attributes
    ----------
    function : str
        Such as "write"; "malloc" is all that allocates.
    folder : Path
        Calls on it and on what lies in it count; allocations all do.
    first, last : int
        The calls that fail, from 1; by default, one does.
    number : int
        The error.
    action : int
        FAIL, KILL (the process ends before the call), or SHORT: half is read or written, and the
        write after it fails.
    smallest : int
        Bytes of the allocations that count.
    calls : int
        How many calls there were.
    """

    function: str
    folder: Path
    first: int
    last: int = 0
    number: int = errno.EIO
    action: int = FAIL
    smallest: int = 0
    calls: int = 0

    @property
    def happened(self) -> bool:
        """Whether a call failed."""
        return self.calls >= self.first

    def __enter__(self) -> None:
        _LIBRARY.fault_arm(
            ctypes.c_char_p(self.function.encode()),
            ctypes.c_char_p(os.fsencode(self.folder)),
            ctypes.c_long(self.first),
            ctypes.c_long(self.last or self.first),
            ctypes.c_int(self.number),
            ctypes.c_int(self.action),
            ctypes.c_size_t(self.smallest),
        )

    def __exit__(self, *_: object) -> None:
        self.calls = _LIBRARY.fault_disarm()


def each(
    calls: Mapping[str, Sequence[int]],
    folder: Path,
    stride: int = 1,
    actions: Sequence[int] = (FAIL, SHORT),
) -> Iterator[Fault]:
    """Yield a fault for each call of each function and each number, to be entered.

    A function's last one does not happen: there are no more calls. With a stride, functions that
    are called often fail at some calls, and with the first number alone.
    """
    for function, numbers in calls.items():
        often = function in ("read", "write", "lseek")
        for action in actions if function in ("read", "write") else actions[:1]:
            for number in numbers if action == FAIL and stride == 1 else numbers[:1]:
                for nth in itertools.count(1, stride if often else 1):
                    fault = Fault(function, folder, nth, number=number, action=action)
                    yield fault
                    if not fault.happened:
                        break
