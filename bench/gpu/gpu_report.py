"""Collect the results of gpu.sh from its folder into a JSON file and a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_figures

SHOWN = 300  # characters of a failure in the table


def status_text(status: int | str) -> str:
    """Return an exit status, or what else came of a part, in words."""
    return "passed" if status == 0 else f"FAILED {status}"


def tests(folder: Path) -> dict[str, Any]:
    """Return the numbers of tests, and which failed, why."""
    found = gpu_figures.lines(folder / "tests.jsonl")
    of = {kind: [line for line in found if line["outcome"] == kind] for kind in OUTCOMES}
    return {
        "passed": len(of["passed"]),
        "skipped": len(of["skipped"]),
        "skipped_for_want_of_a_gpu": sum(line["why"].startswith("gpu:") for line in of["skipped"]),
        "failed": [{"test": line["test"], "why": line["why"]} for line in of["failed"]],
    }


OUTCOMES = ("passed", "skipped", "failed")


def benchmark(line: dict[str, Any]) -> dict[str, Any]:
    """Return a benchmark's times per call, rows per second and ratio to the floor."""
    seconds, floor = line["device_seconds"], line.get("floor_seconds")
    return {
        "group": line["group"],
        "name": line["name"],
        "seconds": seconds,
        "host_seconds": line["host_seconds"],
        "rows_per_second": line["rows"] / seconds,
        "times_the_floor": seconds / floor if floor else None,
    }


def collect(folder: Path) -> dict[str, Any]:
    """Return all results so far."""
    figures = gpu_figures.lines(folder / "figures.jsonl")
    compared = [benchmark(line) for line in figures if line["kind"] == "benchmark"]
    return {
        "parts": gpu_figures.lines(folder / "parts.jsonl"),
        "tests": tests(folder),
        "benchmarks": sorted(compared, key=lambda line: (line["group"], line["seconds"])),
        "figures": [line for line in figures if line["kind"] != "benchmark"],
    }


def text(results: dict[str, Any]) -> str:
    """Return the table."""
    lines = [f"{'part':12s} {'status':>16s} {'seconds':>8s}"]
    for part in results["parts"]:
        status = status_text(part["status"])
        lines.append(f"{part['part']:12s} {status:>16s} {part['seconds']:8.1f}")
    found = results["tests"]
    said = f"tests: {found['passed']} passed, {found['skipped']} skipped, "
    lines += ["", said + f"{len(found['failed'])} failed"]
    for one in found["failed"]:
        reason = " ".join(one["why"].split())
        lines += [f"  {one['test']}", f"    ... {reason[-SHOWN:]}"]
    part = None
    for figure in results["figures"]:
        if figure.get("part") != part:
            part = figure["part"]
            lines += ["", f"-- {part}"]
        lines.append(f"  {figure['kind']}: {figure['text']}")
    group = ""
    for line in results["benchmarks"]:
        if line["group"] != group:
            group = line["group"]
            heads = f"{'us':>10s} {'host us':>10s} {'M rows/s':>10s} {'x floor':>8s}"
            lines += ["", f"{group:56s} {heads}"]
        ratio = f"{line['times_the_floor']:8.2f}" if line["times_the_floor"] else f"{'-':>8s}"
        times = f"{line['seconds'] * 1e6:10.1f} {line['host_seconds'] * 1e6:10.1f}"
        lines.append(f"  {line['name']:54s} {times} {line['rows_per_second'] / 1e6:10.1f} {ratio}")
    return "\n".join(lines) + "\n"


def write(folder: Path) -> str:
    """Write both into the folder; return the table."""
    results = collect(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = text(results)
    (folder / "results.txt").write_text(table)
    return table


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), end="")
