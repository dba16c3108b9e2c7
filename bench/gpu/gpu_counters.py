"""Read the hardware's counters of the kernels of a DLRM's step with ncu, for gpu.sh --second.

The clocks are left as they are, because the machine may be others' too. The report, for ncu's own
viewer, is kept beside what is printed.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
from pathlib import Path

import gpu_figures

STEP = Path(__file__).with_name("gpu_dlrm.py")
SECTIONS = ["SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "WarpStateStats"]
# Of the sections' metrics, those that the model of docs/gpu_model.md can be compared with.
SHOWN = ["Duration", "DRAM Throughput", "Memory Throughput", "L2 Hit Rate", "Achieved Occupancy"]
SHOWN += ["Compute (SM) Throughput", "Registers Per Thread", "Warp Cycles Per Issued Instruction"]
# Replaying a kernel restores the memory that it writes: few tables.
SETTINGS = [("int8 + 5% lru", "20"), ("int4 + 1% lfu", "1")]


def collect(report: Path, setting: str, pool: str) -> int:
    """Run a step under ncu; return its exit status."""
    sections = [word for name in SECTIONS for word in ("--section", name)]
    command = ["ncu", "--clock-control=none", "--profile-from-start=off", "--force-overwrite"]
    command += [*sections, "-o", str(report), sys.executable, "-P", str(STEP), "--counted"]
    command += ["--tables=2", f"--settings={setting}", f"--lookups={pool}"]
    return subprocess.run(command).returncode


def rows(text: str) -> list[tuple[str, str]]:
    """Return each kernel of ncu's table and its chosen metrics."""
    kernels: dict[tuple[str, str], list[str]] = {}
    start = text.find('"ID"')
    for row in csv.DictReader(io.StringIO(text[start:] if start >= 0 else "")):
        kept = kernels.setdefault((row["ID"], row["Kernel Name"].partition("(")[0]), [])
        if row["Metric Name"] in SHOWN:
            kept.append(f"{row['Metric Name']} {row['Metric Value']} {row['Metric Unit']}".rstrip())
    return [(name, ", ".join(kept)) for (_, name), kept in kernels.items()]


def main() -> int:
    """Keep the counters of each setting; return how many had none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    failed = 0
    for i, (setting, pool) in enumerate(SETTINGS):
        report = parser.parse_args().out / f"counters_{i}"
        status = collect(report, setting, pool)
        show = ["ncu", "--import", f"{report}.ncu-rep", "--csv", "--page", "details"]
        found = subprocess.run(show, capture_output=True, text=True)
        kernels = rows(found.stdout)
        if status or not kernels:
            print(found.stdout[-2000:], found.stderr[-2000:], flush=True)
            failed += 1
        for name, metrics in kernels:
            gpu_figures.add("counters", f"{setting}, L={pool}, {name}: {metrics}", setting=setting)
    return failed


if __name__ == "__main__":
    sys.exit(main())
