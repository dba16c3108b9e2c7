"""The generated tables of docs/gpu_model.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from mpembed_gpu.devices import DEVICES
from mpembed_gpu.evaluate import Evaluation, Row
from mpembed_gpu.gates import ARCHITECTURES
from mpembed_gpu.model import LIMIT
from mpembed_gpu.registry import FORMATS, KINDS
from mpembed_gpu.report import Kernel
from mpembed_gpu.scenarios import DIMS, SCENARIOS
from mpembed_gpu.traffic import bus, sectors

PAGE = Path("docs/gpu_model.md")
_BLOCK = r"(<!-- generated: {} -->\n).*?(<!-- end -->)"
_RELEASE = re.compile(r"<!-- nvcc (\S+) -->")


def release(page: str) -> str:
    """Return the release of the toolkit that the page's tables were made with."""
    match = _RELEASE.search(page)
    if match is None:
        raise ValueError(f"{PAGE} does not name its toolkit: <!-- nvcc 13.0 -->")
    return match[1]


def fill(page: str, tables: dict[str, str], toolkit: str) -> str:
    """Return the page with its tables replaced."""
    for name, table in tables.items():
        page, found = re.subn(
            _BLOCK.format(re.escape(name)), rf"\g<1>\n{table}\n\g<2>", page, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"{PAGE} has {found} blocks <!-- generated: {name} -->")
    return _RELEASE.sub(f"<!-- nvcc {toolkit} -->", page)


def difference(page: str, wanted: str) -> str:
    """Return a diff, empty where the page is as it should be."""
    lines = difflib.unified_diff(
        page.splitlines(), wanted.splitlines(), str(PAGE), "what the kernels are now", lineterm=""
    )
    return "\n".join(lines)


def tables(kernels: list[Kernel], evaluation: Evaluation) -> dict[str, str]:
    """Return all tables by the name of their block."""
    made = {"kernels": _fixed(_kernel_lines(kernels)), "batch": _batch(evaluation.batch())}
    over: list[str] = []
    for scenario in SCENARIOS:
        rows = list(evaluation.rows(scenario))
        made[scenario.title] = _operation(rows)
        said = " | ".join(_summary(rows, i) for i in range(len(DEVICES)))
        over.append(f"| {scenario.title} | {said} |")
    names = " | ".join(device.name for device in DEVICES)
    head = f"| operation | {names} |\n|---|{'---|' * len(DEVICES)}\n"
    return {**made, "bus": _bus(), "summary": head + "\n".join(over)}


def _bus() -> str:
    """Return what rows in host memory cost on the bus."""
    names = [f"{device.name} ns" for device in DEVICES]
    steps = [f"step, {optimizer.name}" for optimizer in KINDS]
    head = ["D", "format", "row B", "lookup", *names, *steps, "step, cached"]
    lines = [f"| {' | '.join(head)} |", "|--:|---" + "|--:" * (len(head) - 2) + "|"]
    for dim in DIMS:
        for fmt in FORMATS:
            moved = sectors(fmt.row(dim))
            hits = {bus(fmt, dim, optimizer, cached=True) for optimizer in KINDS}
            cells = [
                *(f"{dim}", fmt.name, f"{fmt.row(dim)}", f"{moved:.0f}"),
                *(f"{moved / device.bus * 1e9:.2f}" for device in DEVICES),
                *(f"{bus(fmt, dim, optimizer, cached=False):.0f}" for optimizer in KINDS),
                f"{max(hits):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summary(rows: list[Row], device: int) -> str:
    """Return the range of times over the floor, how many exceed the limit, and what bounds them."""
    estimates = [row.estimates[device] for row in rows]
    ratios = sorted(estimate.ratio for estimate in estimates)
    over = [estimate for estimate in estimates if estimate.ratio > LIMIT]
    bounds = ", ".join(sorted({estimate.bound for estimate in over}))
    said = f", {len(over)} of {len(rows)} over {LIMIT} ({bounds})" if over else ""
    return f"{ratios[0]:.1f} to {ratios[-1]:.1f}{said}"


def _operation(rows: list[Row]) -> str:
    names = " | ".join(f"{d.name} ps | x floor | bound" for d in DEVICES)
    head = f"| D | format | floor B | moved B | instructions | waits | {names} |"
    lines = [head, "|--:|---|" + "--:|" * 4 + "--:|--:|---|" * len(DEVICES)]
    lines += [f"| {row.dim} | {row.label} | {_cells(row)} |" for row in rows]
    return "\n".join(lines)


def _batch(rows: Iterable[Row]) -> str:
    names = " | ".join(f"{d.name} ps | x floor | bound" for d in DEVICES)
    lines = [f"| | floor B | moved B | instructions | waits | {names} |"]
    lines.append("|---|" + "--:|" * 4 + "--:|--:|---|" * len(DEVICES))
    lines += [f"| {row.label} | {_cells(row)} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> str:
    path = row.path
    work = f"{path.instructions:.1f} | {path.waits.far / path.rows:.2f}" if path else "- | -"
    times = " | ".join(f"{e.seconds * 1e12:.0f} | {e.ratio:.2f} | {e.bound}" for e in row.estimates)
    return f"{row.bytes.floor:.0f} | {row.bytes.memory:.0f} | {work} | {times}"


def _kernel_lines(kernels: list[Kernel]) -> list[list[str]]:
    by_name: dict[tuple[str, str], dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault((kernel.family, kernel.name), {})[kernel.arch] = kernel
    head = ["kernel", "registers", "warps", "shared", "stack", "loads", "stores"]
    lines = [[*head, "atomics", "shfl", "fp32", "int", "all"]]
    family = ""
    for (file, name), here in sorted(by_name.items()):
        if file != family:
            lines.append([f"{file}.cu"])
            family = file
        each = [here[arch] for arch in ARCHITECTURES]
        mix = here["90"].mix
        numbers = [mix.atomics, mix.shuffles, mix.fp32, mix.integer, mix.total]
        lines.append(
            [
                f"  {name}",
                "/".join(str(k.registers) for k in each),
                "/".join(str(k.warps) for k in each),
                str(max(k.shared for k in each)),
                str(max(k.stack for k in each)),
                "/".join(map(str, mix.loads)),
                "/".join(map(str, mix.stores)),
                *map(str, numbers),
            ]
        )
    return lines


def _fixed(lines: list[list[str]]) -> str:
    """Return lines in columns, in a code block."""
    columns = max(map(len, lines))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(columns)]
    made = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=False)]
        made.append("  ".join(cells).rstrip())
    return "\n".join(["```", *made, "```"])
