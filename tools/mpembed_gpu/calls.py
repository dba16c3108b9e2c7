"""Launches and runtime calls of a training step, counted by the stub of the runtime.

`python -m mpembed_gpu.calls` runs the step, in a process that the stub's folder comes first in.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpembed_gpu import cubins, report, stub, workload
from mpembed_gpu.workload import BATCH, DIM, SETTINGS, TABLES, Setting

_CUB = "cub::"
_KERNEL_OF_CUB = re.compile(r"(?:void )?cub::[\w:]*?::(Device\w+)")
_LAUNCH = re.compile(r"cudaLaunchKernel\w*")
_FILL = re.compile(r"cudaMemset\w*")
_MEMORY = re.compile(r"cuda(Malloc|Free)\w*Async")
_EVENT = re.compile(r"cuda(Event|StreamWaitEvent)\w*")


@dataclass(frozen=True)
class Calls:
    """The calls of one step, by function of the runtime, and the launches by kernel."""

    calls: Mapping[str, int]
    kernels: Mapping[str, int]

    def count(self, pattern: re.Pattern[str]) -> int:
        """Return the calls of functions that match."""
        return sum(n for name, n in self.calls.items() if pattern.fullmatch(name))

    @property
    def launches(self) -> int:
        """Kernels, CUB's included."""
        return self.count(_LAUNCH)

    @property
    def fills(self) -> int:
        """Memory that is set."""
        return self.count(_FILL)

    @property
    def memory(self) -> int:
        """Allocations and frees in the order of a stream."""
        return self.count(_MEMORY)

    @property
    def events(self) -> int:
        """What orders streams."""
        return self.count(_EVENT)

    @property
    def all(self) -> int:
        """Every call of the runtime."""
        return sum(self.calls.values())

    @property
    def of_cub(self) -> int:
        """Kernels of CUB."""
        return sum(n for name, n in self.kernels.items() if name.startswith(_CUB))


def parse(text: str) -> Calls:
    """Return the counts of the stub's report."""
    found: dict[str, Counter[str]] = {"call": Counter(), "launch": Counter()}
    for line in text.splitlines():
        kind, name, count = line.split()
        found[kind][name] += int(count)
    names = cubins.demangle(list(found["launch"]))
    kernels: Counter[str] = Counter()
    for mangled, n in found["launch"].items():
        kernels[_short(names[mangled])] += n
    return Calls(dict(found["call"]), dict(sorted(kernels.items())))


def _short(name: str) -> str:
    """Return a kernel's name without what differs from build to build."""
    of_cub = _KERNEL_OF_CUB.match(name)
    return f"{_CUB}{of_cub[1]}" if of_cub else report.short_name(name) or name


def write(compiler: Sequence[str], include: Sequence[str], folder: Path, path: Path) -> None:
    """Count the steps of the installed package, built by nvcc with a shared runtime.

    Parameters
    ----------
    compiler, include, folder
        As in `stub.build`.
    path : Path
        The file for the counts.
    """
    spec = importlib.util.find_spec("mpembed")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise FileNotFoundError("mpembed is not installed")
    root = Path(next(iter(places)))
    libraries = [*root.glob("lib/libmpembed_cuda*.so*"), *root.glob("_bindings/cuda.*.so")]
    here = stub.build(compiler, include, [one for one in libraries if stub.needed(one)], folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{here}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(root.parent)])
    command = [sys.executable, "-P", "-m", "mpembed_gpu.calls"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    path.write_text(json.dumps(json.loads(done.stdout), indent=1) + "\n")


def read(path: Path) -> dict[tuple[str, int], Calls]:
    """Return the counts of a file, by the cache's policy ("none" without) and lookups of a bag."""
    return {
        (policy, int(pool)): Calls(**counts)
        for policy, pools in json.loads(path.read_text()).items()
        for pool, counts in pools.items()
    }


def main() -> None:
    """Print the counts of steps with each policy and bags of each size."""
    cached = {setting.policy: setting for setting in SETTINGS}
    found: dict[str, Any] = {}
    for policy in ("none", *cached):
        for pool in workload.LOOKUPS:
            made = count_step(cached.get(policy), pool)
            found.setdefault(policy, {})[str(pool)] = {
                "calls": made.calls,
                "kernels": made.kernels,
            }
    print(json.dumps(found))


def count_step(setting: Setting | None, pool: int) -> Calls:
    """Return the calls of a training step: a forward and a backward, on a stream."""
    import mpembed as mpe

    precision = "int8" if setting is None else setting.precision
    tables = [
        mpe.TableConfig(f"t{i}", rows, DIM, precision)
        for i, rows in enumerate(workload.table_rows())
    ]
    cache = None
    if setting is not None:
        cache = mpe.CacheConfig(load_factor=setting.load_factor, policy=setting.policy)
    emb = mpe.EmbeddingBagCollection(
        tables, cache=cache, optimizer=mpe.RowwiseAdagrad(lr=0.1), device="cuda"
    )
    n = BATCH * TABLES * pool
    indices, offsets, grad = (
        mpe.to_device(array, "cuda")
        for array in (
            np.zeros(n, np.int64),
            np.arange(0, n + 1, pool),
            np.zeros((BATCH, TABLES * DIM), np.float32),
        )
    )
    extension = ctypes.CDLL(importlib.import_module("mpembed._bindings.cuda").__file__)
    runtime: Any = extension  # its calls reach the stub
    stream = ctypes.c_void_p()
    assert runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    runtime.stub_report.restype = ctypes.c_char_p
    for _ in range(3):  # the first ones make what later ones use again
        runtime.stub_reset()
        emb.forward(indices, offsets, stream=stream.value)
        emb.backward(grad, stream=stream.value)
    return parse(runtime.stub_report().decode())


if __name__ == "__main__":
    main()
