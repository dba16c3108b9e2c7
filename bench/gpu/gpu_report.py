"""Collect the results of gpu.sh from its folder into a JSON file and a table."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def parts(folder: Path) -> list[dict[str, Any]]:
    """Return each part's name, status and seconds."""
    lines = (folder / "parts.tsv").read_text().splitlines()
    split = (line.split("\t") for line in lines)
    return [{"part": n, "status": int(s), "seconds": int(t)} for n, s, t in split]


def tests(folder: Path) -> dict[str, Any]:
    """Return the number of tests, and which failed."""
    try:
        root = ElementTree.parse(folder / "tests.xml").getroot()
    except (OSError, ElementTree.ParseError) as error:
        return {"missing": str(error)}
    cases = list(root.iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skips = [s for s in (c.find("skipped") for c in cases) if s is not None]
    return {
        "tests": len(cases),
        "skipped": len(skips),
        "skipped_for_want_of_a_gpu": sum(s.get("message", "").startswith("gpu:") for s in skips),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
    }


def benchmarks(folder: Path) -> list[dict[str, Any]]:
    """Return each benchmark's median time per call, rows per second and ratio to the floor."""
    try:
        found = json.loads((folder / "benchmarks.json").read_text())["benchmarks"]
    except (OSError, ValueError, KeyError):
        return []
    made = []
    for one in found:
        info = one["extra_info"]
        seconds = one["stats"]["median"] / info["calls"]
        floor = info.get("floor_seconds")
        made.append(
            {
                "group": one["group"],
                "name": one["name"],
                "seconds": seconds,
                "rows_per_second": info["rows"] / seconds,
                "times_the_floor": seconds / floor if floor else None,
            }
        )
    return sorted(made, key=lambda line: (line["group"], line["seconds"]))


def text(results: dict[str, Any]) -> str:
    """Return the table."""
    lines = [results["device"], "", f"{'part':12s} {'status':>8s} {'seconds':>8s}"]
    for part in results["parts"]:
        status = "passed" if part["status"] == 0 else f"FAILED {part['status']}"
        lines.append(f"{part['part']:12s} {status:>8s} {part['seconds']:8d}")
    found = results["tests"]
    if "missing" in found:
        lines += ["", f"tests: no result, {found['missing']}"]
    else:
        said = f"{found['tests']} tests, {found['skipped']} skipped, {len(found['failed'])} failed"
        lines += ["", said, *(f"  {name}" for name in found["failed"])]
    group = ""
    for line in results["benchmarks"]:
        if line["group"] != group:
            group = line["group"]
            lines += ["", f"{group:56s} {'us':>10s} {'M rows/s':>10s} {'x floor':>8s}"]
        ratio = f"{line['times_the_floor']:8.2f}" if line["times_the_floor"] else f"{'-':>8s}"
        numbers = f"{line['seconds'] * 1e6:10.1f} {line['rows_per_second'] / 1e6:10.1f}"
        lines.append(f"  {line['name']:54s} {numbers} {ratio}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both; the exit status is 1 if a part has no results."""
    folder = Path(sys.argv[1])
    log = folder / "device.log"
    results: dict[str, Any] = {
        "device": log.read_text().strip() if log.exists() else "no device",
        "parts": parts(folder),
        "tests": tests(folder),
        "benchmarks": benchmarks(folder),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = text(results)
    (folder / "results.txt").write_text(table)
    print(table, end="")
    return 0 if results["benchmarks"] and "missing" not in results["tests"] else 1


if __name__ == "__main__":
    sys.exit(main())
