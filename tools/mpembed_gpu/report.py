"""The resources of each kernel: registers, memory, resident warps, instructions by kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpembed_gpu import cubins, sass
from mpembed_gpu.occupancy import resident_warps

_RESOURCE = re.compile(
    r"^ Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
)
_ARGUMENTS = r"<(?:[^()]|\((?:int|bool)\))*>"
_OWN = re.compile(rf"^(?:void )?mpembed::cuda::\(anonymous namespace\)::(\w+(?:{_ARGUMENTS})?)\(")


_THREADS, _BAG_THREADS = 256, 128  # of a block: kThreads in launch.cuh, kBagThreads in lookup.cu


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture."""

    family: str  # the file
    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    local: int
    mix: sass.Mix

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor holds at a time, at the block's threads."""
        threads = _BAG_THREADS if self.name.startswith("bags_kernel") else _THREADS
        return resident_warps(self.arch, self.registers, self.shared, threads)


def short_name(demangled: str) -> str:
    """Return a kernel's name as in the source, empty for a kernel of CUB.

    CUB's kernels have names of ours in their template arguments only.
    """
    match = _OWN.match(demangled)
    if match is None:
        return ""
    name = re.sub(r"mpembed::(generic|cuda)::", "", match[1])
    name = re.sub(r"\((?:int|bool)\)", "", name).replace("unsigned int", "uint32")
    return name.replace("unsigned long", "uint64")


def kernels(tools: cubins.Kernels, family: str, arch: str, cubin: Path) -> list[Kernel]:
    """Return our kernels of one cubin."""
    resources = {m[0]: m[1:] for m in _RESOURCE.findall(tools.resources(cubin))}
    if not resources:
        return []
    code = sass.functions(tools.listing(cubin))
    names = cubins.demangle(list(resources))
    found = []
    for mangled, values in resources.items():
        name = short_name(names[mangled])
        if not name:
            continue
        registers, stack, shared, local = map(int, values)
        mix = sass.mix(instruction.opcode for instruction in code[mangled])
        found.append(Kernel(family, name, arch, registers, shared, stack, local, mix))
    return sorted(found, key=lambda kernel: kernel.name)


def all_kernels(
    tools: cubins.Kernels, architectures: Sequence[str], families: Collection[str] = ()
) -> list[Kernel]:
    """Compile everything, or some of the files, and return all kernels."""
    jobs = {
        (source.stem, arch): tools.job(source, arch)
        for source in cubins.sources()
        if not families or source.stem in families
        for arch in architectures
    }
    tools.compile(list(jobs.values()))
    return [
        kernel
        for (family, arch), job in jobs.items()
        for kernel in kernels(tools, family, arch, job.target)
    ]
