"""What the machine code of every kernel must keep to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mpembed_gpu.report import Kernel

ARCHITECTURES = ("80", "90", "100")


@dataclass(frozen=True)
class Limit:
    """For kernels whose `family name` matches: registers at most, resident warps at least."""

    pattern: str
    registers: int
    warps: int


# The first that matches counts. A little above what is there, so that a change shows.
LIMITS = (
    Limit(r"lookup bags_kernel<AnyFormat, 1", 96, 16),
    Limit(r"lookup bags_kernel<(AnyFormat, |\w+, 1>)", 80, 24),
    Limit(r"lookup bags_kernel", 64, 32),
    Limit(r"lookup ", 48, 40),
    Limit(r"update update_kernel<\w+, true", 104, 16),  # long rows, in memory
    Limit(r"update (update|partials)_kernel", 80, 24),
    Limit(r"cache move_kernel<true", 72, 24),
    Limit(r"cache (admit|move|flush)_kernel", 64, 32),
    Limit(r"cache ", 32, 64),
    Limit(r"convert init_rows_kernel<true", 72, 24),
    Limit(r"convert \w+<(\w+, )?true", 64, 32),
    Limit(r"", 40, 48),
)
# Loads of 128 bits are what these kernels are for.
VECTOR_LOADS = r"lookup (bags_kernel<\w+, [48]>|lookups_kernel<[48]>)"
# Bytes of stack for arrays that are indexed by what is known at run time only. None are wanted:
# what is here may shrink, and an entry that is not needed any more fails the gate.
STACK: dict[str, int] = {}


def failures(kernels: Iterable[Kernel]) -> list[str]:
    """Return what is wrong, a line each."""
    kernels = list(kernels)
    found = [line for kernel in kernels for line in _of(kernel)]
    for entry in STACK:
        if all(k.stack == 0 for k in kernels if _title(k).startswith(entry)):
            found.append(f"{entry} needs no stack any more: remove it from mpembed_gpu/gates.py")
    for missing in {"lookup bags_kernel<AnyFormat, 8", "lookup lookups_kernel<8"}:
        if not any(_title(kernel).startswith(missing) for kernel in kernels):
            found.append(f"{missing}>: no such kernel, whose vector loads are promised")
    return found


def _title(kernel: Kernel) -> str:
    return f"{kernel.family} {kernel.name}"


def _of(kernel: Kernel) -> list[str]:
    title = _title(kernel)
    limit = next(limit for limit in LIMITS if re.match(limit.pattern, title))
    stack = max((n for entry, n in STACK.items() if title.startswith(entry)), default=0)
    wrong = []
    if kernel.stack > stack or kernel.local:
        wrong.append(f"{kernel.stack} bytes of stack and {kernel.local} of local memory")
    if kernel.mix.spills and not stack:
        wrong.append(f"{kernel.mix.spills} loads and stores of local memory: registers are spilled")
    if kernel.registers > limit.registers:
        wrong.append(f"{kernel.registers} registers, at most {limit.registers}")
    if kernel.warps < limit.warps:
        wrong.append(f"{kernel.warps} warps a multiprocessor, at least {limit.warps}")
    if re.match(VECTOR_LOADS, title) and kernel.mix.loads[0] == 0:
        wrong.append("no loads of 128 bits")
    return [f"sm_{kernel.arch} {title}: {what}" for what in wrong]
