"""The limits that the machine code of every kernel must keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mpembed_gpu.registry import FORMATS, OPTIMIZERS, POLICIES
from mpembed_gpu.report import Kernel

ARCHITECTURES = ("80", "90", "100")


@dataclass(frozen=True)
class Limit:
    """For kernels whose `family name` matches: most registers, least resident warps."""

    pattern: str
    registers: int
    warps: int


# Optimizers with two states, which need registers, as weight and gradient do.
LARGE = [optimizer.type for optimizer in OPTIMIZERS if len(optimizer.states) > 1]
# The first that matches applies. They are a little above today's numbers, so that a change shows.
LIMITS = (
    Limit(r"lookup bags_kernel<\w+, 1", 96, 20),
    Limit(r"lookup bags_kernel", 80, 24),  # most have 28 warps of 72 registers
    Limit(r"lookup ", 48, 40),
    Limit(r"update_long update_kernel", 124, 16),  # in memory
    *(Limit(rf"update_short update_kernel<{name}, ", 116, 16) for name in LARGE),
    Limit(r"update_\w+ (update|partials)_kernel", 80, 24),
    Limit(r"cache move_kernel<true", 80, 24),
    Limit(r"cache (admit|move|flush)_kernel", 64, 32),
    Limit(r"cache ", 32, 64),
    # Their code is that of every format; write_rows also has what paired rounding reads.
    Limit(r"convert (init|write)_rows_kernel<true", 72, 24),
    Limit(r"convert (init|write)_rows_kernel<false", 48, 40),
    Limit(r"convert \w+<(\w+, )?true", 64, 32),
    Limit(r"", 40, 48),
)
# These kernels must have loads of 128 bits.
VECTOR_LOADS = r"lookup (bags_kernel<\w+, [48]>|lookups_kernel<[48]>)"
# Allowed bytes of stack, for arrays that are indexed at run time. There should be none: an entry
# that is no longer needed fails the gate.
STACK: dict[str, int] = {}


def failures(kernels: Iterable[Kernel]) -> list[str]:
    """Return what is wrong, one line each."""
    kernels = list(kernels)
    found = [line for kernel in kernels for line in _of(kernel)]
    for entry in STACK:
        if all(k.stack == 0 for k in kernels if _title(k).startswith(entry)):
            found.append(f"{entry} needs no stack any more: remove it from mpembed_gpu/gates.py")
    titles = {_title(kernel) for kernel in kernels}
    found += [f"{title}: no such kernel" for title in required() if title not in titles]
    return found


def required() -> list[str]:
    """Return the kernels that must exist for what is registered, as `family name`."""
    formats, optimizers, policies = (
        [entry.type for entry in each] for each in (FORMATS, OPTIMIZERS, POLICIES)
    )
    alignments, long = (1, 4, 8), ("false", "true")
    pairs = [
        *(
            ("lookup bags", kind, columns)
            for kind in ("AnyFormat", *formats)
            for columns in alignments
        ),
        *(
            (f"convert {name}", kind, rows)
            for name in ("quantize", "dequantize")
            for kind in formats
            for rows in long
        ),
        *(("update_short update", kind, "false") for kind in optimizers),
        *(("update_long update", kind, "true") for kind in optimizers),
    ]
    return [
        *(f"{name}_kernel<{kind}, {second}>" for name, kind, second in pairs),
        *(f"lookup lookups_kernel<{columns}>" for columns in alignments),
        *(f"cache {name}_kernel<{kind}>" for name in ("find", "admit") for kind in policies),
    ]


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
