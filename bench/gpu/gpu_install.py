"""Install mpembed for gpu.sh alone: a carried wheel if one runs here, else a build.

Run ``python bench/gpu/gpu_install.py --wheels DIR``. Every wheel in DIR is installed into the
folder MPEMBED_GPU_SITE, first in Python's path, so that a package that the machine lacks, or has
too old, may be carried as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import gpu_figures

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-index"]
# Runs a kernel: a wheel of another toolkit or for another GPU may be imported and still not work.
TRIAL = """
import numpy as np, mpembed as mpe
rows = mpe.ops.quantize(mpe.to_device(np.ones((2, 8), np.float32), "cuda"), "int8")
assert rows.numpy().shape == (2, 16), rows.shape
"""


def call(*command: str) -> bool:
    """Run a command outside of the sources; return whether it succeeded."""
    print("+", *command, flush=True)
    return subprocess.run(command, cwd="/").returncode == 0


def install(wheel: Path, site: Path) -> bool:
    """Install a wheel; pip refuses one of another Python or system."""
    target = ["--quiet", "--upgrade", "--target", str(site)]
    return call(*PIP, "install", *OFFLINE, *target, str(wheel))


def runs() -> bool:
    """Whether the installed package runs a kernel."""
    return call(sys.executable, "-P", "-c", TRIAL)


def unmet() -> list[str]:
    """Return what the build needs and the machine lacks, or has too old."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    found = []
    for requirement in wanted:
        name, _, least = requirement.partition(">=")
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            have = "0"
        numbers = [[int(n) for n in re.findall(r"\d+", v)[:2]] for v in (have, least)]
        if numbers[0] < numbers[1]:
            found.append(requirement)
    return found


def build(made: Path) -> Path | None:
    """Build a wheel; return it."""
    importlib.invalidate_caches()  # what was installed a moment ago
    for requirement in unmet():
        print(f"the build needs {requirement}: put its wheel into --wheels", flush=True)
    command = [*PIP, "wheel", "--no-build-isolation", *OFFLINE, "--verbose"]
    if not call(*command, "--wheel-dir", str(made), str(ROOT)):
        return None
    return max(made.glob("mpembed-*.whl"), key=lambda path: path.stat().st_mtime)


def main() -> int:
    """Install; the exit status is 1 if nothing runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, required=True, metavar="DIR")
    site, made = (Path(os.environ[f"MPEMBED_GPU_{name}"]) for name in ("SITE", "MADE"))
    shutil.rmtree(site, ignore_errors=True)
    made.mkdir(parents=True, exist_ok=True)
    wheels = parser.parse_args().wheels
    carried = sorted(wheels.glob("*.whl"))
    for wheel in (one for one in carried if not one.name.startswith("mpembed-")):
        gpu_figures.add("install", f"{wheel.name}: {install(wheel, site)}")
    ours = [one for one in (*carried, *made.glob("*.whl")) if one.name.startswith("mpembed-")]
    for wheel in ours:
        if install(wheel, site) and runs():
            gpu_figures.add("install", f"{wheel.name} runs", wheel=wheel.name)
            break
    else:
        print(f"none of {len(ours)} carried wheels runs: it is built", flush=True)
        wheel_made = build(made)
        if wheel_made is None or not install(wheel_made, site) or not runs():
            gpu_figures.add("install", "nothing runs")
            return 1
        gpu_figures.add("install", f"{wheel_made.name} was built", wheel=wheel_made.name)
    return 0 if call(sys.executable, "-P", "-m", "mpembed", "info") else 1


if __name__ == "__main__":
    sys.exit(main())
