"""Train on the CPU backend and on another one through the C API, with random settings.

As a program: ``python tests/c_api/replicas.py LIBRARY [CASES [SEED]]``, where LIBRARY holds the
driver and exports ``mpe_cuda_backend``. It prints each case that differs, and fails then.
"""

from __future__ import annotations

import ctypes
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from mpembed import registry

NAMES: tuple[str, ...] = (
    "dim",
    "steps",
    "optimizer",
    "policy",
    "batch_size",
    "longest",
    "rows",
    "sets",
)
NAMES += ("rounding", "decay", "drop", "state_format", "second_state_format", "copies", "format")
NAMES += ("batches", "empty", "layout", "other_layout")
FROZEN = NO_CACHE = -1
DIMS = (1, 3, 8, 9, 16, 17, 24, 32, 33, 40, 64, 65, 100, 128, 200, 256, 257, 300)


class Options(ctypes.Structure):
    """replicas::Options."""

    _fields_ = (("seed", ctypes.c_uint64), *((name, ctypes.c_int32) for name in NAMES))


def cases(count: int, seed: int) -> Iterator[dict[str, int]]:
    """Yield settings of scenarios."""
    draw = random.Random(seed)
    optimizers = [*registry.OPTIMIZERS.values(), FROZEN]
    for number in range(count):
        yield {
            "seed": draw.getrandbits(64),
            "dim": draw.choice(DIMS),
            "steps": draw.choice([6, 12]),
            "optimizer": optimizers[(number + seed) % len(optimizers)],
            "policy": draw.choice([NO_CACHE, *registry.POLICIES.values()]),
            "batch_size": draw.choice([1, 3, 7]),
            "longest": draw.choice([0, 1, 4, 9, 30]),
            "rows": draw.choice([1, 5, 20, 60]),
            "sets": draw.choice([1, 2, 5]),
            "rounding": draw.randrange(len(registry.ROUNDINGS)),
            "decay": draw.randrange(len(registry.WEIGHT_DECAYS)),
            "drop": draw.randrange(2),
            "state_format": draw.choice([*registry.STATE_FORMATS.values()]),
            "second_state_format": draw.choice([*registry.STATE_FORMATS.values()]),
            "copies": 1,
            "format": -1,
            "batches": draw.choice([1, 1, 2, 3]),
            "empty": draw.choice([-1, -1, 0, 9]),
            "layout": draw.choice([0, 1, 4, 16]),
            "other_layout": draw.choice([0, 1, 4, 16]),
        }


class Replicas:
    """The driver's functions on the CPU backend and another one: by default the library's own.

    Where neither library has one, both are the CPU's.
    """

    def __init__(self, library: Path, other: Path | None = None) -> None:
        spec = importlib.util.find_spec("mpembed._bindings.kernels")
        assert spec is not None
        assert spec.origin is not None
        core = ctypes.CDLL(spec.origin, mode=ctypes.RTLD_GLOBAL)  # the driver asks it for row sizes
        self.library = ctypes.CDLL(str(library))
        cuda = self.library if other is None else ctypes.CDLL(str(other))
        core.mpe_cpu_backend.restype = ctypes.c_void_p
        for name in ("scenario", "groups", "far_rows", "hits", "no_memory", "launches"):
            if hasattr(self.library, name):  # the last two need the emulation
                getattr(self.library, name).restype = ctypes.c_char_p
        cpu = ctypes.c_void_p(core.mpe_cpu_backend())
        self.backends = [cpu, cpu]
        if hasattr(cuda, "mpe_cuda_backend"):
            cuda.mpe_cuda_backend.restype = ctypes.c_void_p
            self.backends[1] = ctypes.c_void_p(cuda.mpe_cuda_backend())

    def launches(self, case: dict[str, int]) -> str:
        """The same for launches of a step in a CUDA graph."""
        options = Options(**case)
        report: bytes = self.library.launches(*self.backends, ctypes.byref(options))
        return report.decode()

    def scenario(self, case: dict[str, int]) -> str:
        """Return what differed, or nothing."""
        options = Options(**case)
        report: bytes = self.library.scenario(*self.backends, ctypes.byref(options))
        return report.decode()

    def groups(self, case: dict[str, int]) -> str:
        """Return what differed between lookups of many groups and of each, or nothing."""
        options = Options(**case)
        report: bytes = self.library.groups(*self.backends, ctypes.byref(options))
        return report.decode()

    def hits(self, case: dict[str, int]) -> str:
        """Return what tables and hits had to do with each other, on both backends, or nothing."""
        options = Options(**case)
        reports = []
        for backend in self.backends:
            reports.append(self.library.hits(backend, ctypes.byref(options)).decode())
        return "".join(reports)

    def far_rows(self, mapped: bool) -> str:
        """Return what differed beyond 4 GiB, or nothing."""
        report: bytes = self.library.far_rows(*self.backends, int(mapped))
        return report.decode()

    def no_memory(self, case: dict[str, int]) -> tuple[str, int]:
        """Return what a failing allocation changed, or nothing, and how many failed."""
        options, failures = Options(**case), ctypes.c_int32()
        report: bytes = self.library.no_memory(
            self.backends[1], ctypes.byref(options), ctypes.byref(failures)
        )
        return report.decode(), failures.value


def main() -> None:
    """Run scenarios, and say what differed."""
    replicas = Replicas(Path(sys.argv[1]))
    count, seed = (int(word) for word in [*sys.argv[2:], "20", "0"][:2])
    for number, case in enumerate(cases(count, seed)):
        if report := replicas.scenario(case) + (replicas.groups(case) if number % 4 == 0 else ""):
            sys.exit(f"case {number}, {case}:\n{report}")
    print(f"{count} scenarios, every byte equal")


if __name__ == "__main__":
    main()
