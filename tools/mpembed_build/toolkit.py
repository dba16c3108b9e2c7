"""Finds a CUDA toolkit that works, on the system or among the installed wheels."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpembed_build.settings import BuildError, CudaSettings

MINIMUM = (12, 0)
SYSTEM = Path("/usr/local/cuda")
# Toolkits fail when their headers, libraries and compilers are of different releases or incomplete.
# These two lines need all of them.
PROBE = "#include <cub/device/device_radix_sort.cuh>\n__global__ void probe(int* x) { *x = 1; }\n"


class UnusableError(Exception):
    """The reason why a toolkit, or every toolkit, cannot be used."""


@dataclass(frozen=True)
class Toolkit:
    """A toolkit that compiles."""

    nvcc: str
    version: str
    supported: tuple[str, ...]
    include: tuple[str, ...]
    libraries: tuple[str, ...]

    def at_least(self, major: int, minor: int) -> bool:
        """Return whether it is this release or a newer one."""
        return _numbers(self.version) >= (major, minor)

    def runtime(self, kind: str) -> Path:
        """Return the static or the shared runtime library."""
        # The wheels lack libcudart.so; they have only the file with the release's number.
        pattern = "libcudart_static.a" if kind == "static" else "libcudart.so*"
        for directory in self.libraries:
            for path in sorted(Path(directory).glob(pattern)):
                return path
        raise UnusableError(f"{self.nvcc} has no {pattern.rstrip('*')} beside it")


def find(
    settings: CudaSettings, environment: Mapping[str, str], ccbin: str, cache: Path
) -> Toolkit:
    """Return the first toolkit of the search order that compiles.

    Raises
    ------
    UnusableError
        No toolkit works; the message says what was wrong with each.
    BuildError
        ``MPEMBED_NVCC`` names a compiler that cannot be used.
    """
    reasons: dict[str, str] = {}
    for origin, path in candidates(settings, environment):
        try:
            toolkit = examine(path, ccbin, cache)
            toolkit.runtime(settings.runtime)
            return toolkit
        except UnusableError as error:
            reasons.setdefault(str(error), origin)
    if settings.nvcc not in ("", "pypi"):
        raise BuildError(f"MPEMBED_NVCC={settings.nvcc}: {'; '.join(reasons)}")
    if reasons:
        told = "; ".join(f"{reason} ({origin})" for reason, origin in reasons.items())
        raise UnusableError(f"no usable nvcc was found: {told}")
    raise UnusableError("no nvcc was found")


def candidates(
    settings: CudaSettings, environment: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """Yield the origin and the path of each compiler, in the search order."""
    if settings.nvcc not in ("", "pypi"):
        yield "MPEMBED_NVCC", _program(settings.nvcc, environment)
        return
    if not settings.nvcc:
        if environment.get("CUDACXX"):
            yield "CUDACXX", _program(environment["CUDACXX"], environment)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            if environment.get(name):
                yield name, Path(environment[name]) / "bin" / "nvcc"
        found = shutil.which("nvcc", path=environment.get("PATH", os.defpath))
        if found:
            yield "PATH", Path(found)
        if (SYSTEM / "bin" / "nvcc").exists():
            yield str(SYSTEM), SYSTEM / "bin" / "nvcc"
    yield from (("wheels", path) for path in wheels())


def wheels() -> list[Path]:
    """Return the compilers of the wheels on Python's path, the newest release first."""
    spec = importlib.machinery.PathFinder.find_spec("nvidia")
    places = (spec.submodule_search_locations if spec else None) or []
    found = [path for place in places for path in Path(place).glob("cu*/bin/nvcc")]
    return sorted(found, key=lambda path: _numbers(path.parts[-3]), reverse=True)


def examine(nvcc: Path, ccbin: str, cache: Path) -> Toolkit:
    """Try a compiler and return its toolkit."""
    if not nvcc.is_file():
        raise UnusableError(f"{nvcc} does not exist")
    told = re.search(r"\bV(\d+\.\d+\.\d+)", _ask([str(nvcc), "--version"]))
    if told is None:
        raise UnusableError(f"{nvcc} --version names no version")
    version = told[1]
    if _numbers(version)[:2] < MINIMUM:
        raise UnusableError(f"{nvcc} is {version}, older than {MINIMUM[0]}.{MINIMUM[1]}")
    codes = re.findall(r"\bsm_(\d+)\b", _ask([str(nvcc), "--list-gpu-code"]))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        layout = _layout(_ask([str(nvcc), "-dryrun", "-c", str(source)]))
        command = [str(nvcc), "-std=c++17", "-ccbin", ccbin, "-c", str(source)]
        _probe([*command, "-o", f"{source}.o"], f"{nvcc.resolve()}\t{version}\t{ccbin}", cache)
    return Toolkit(str(nvcc), version, tuple(codes), *layout)


def _probe(command: list[str], key: str, cache: Path) -> None:
    """Compile the probe, unless the cache says that this compiler has done so before."""
    stamp = f"{Path(command[0]).stat().st_mtime_ns}"
    try:
        known = json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get(key) == stamp:
        return
    _ask(command)
    cache.parent.mkdir(parents=True, exist_ok=True)
    # pip removes its compilers after each build, so those that no longer exist are dropped.
    known = {k: s for k, s in known.items() if Path(k.partition("\t")[0]).exists()}
    cache.write_text(json.dumps({**known, key: stamp}, indent=1))


def _layout(dryrun: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the directories of headers and of libraries from what ``nvcc -dryrun`` prints."""
    values = dict(re.findall(r"^#\$ (\w+)= *(.*)$", dryrun, re.MULTILINE))
    words = shlex.split(f"{values.get('INCLUDES', '')} {values.get('SYSTEM_INCLUDES', '')}")
    include = [word.removeprefix("-I") for word in words if word != "-isystem"]
    libraries = [word.removeprefix("-L") for word in shlex.split(values.get("LIBRARIES", ""))]
    if "TOP" in values:  # nvcc.profile may name lib64 where the wheels have lib
        libraries += [str(Path(values["TOP"], name)) for name in ("lib64", "lib")]
    real = (dict.fromkeys(os.path.realpath(p) for p in paths) for paths in (include, libraries))
    headers, libs = (tuple(filter(os.path.isdir, paths)) for paths in real)
    return headers, libs


def _ask(command: list[str]) -> str:
    """Return what a command prints; on failure, raise its most telling line as the reason."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UnusableError(f"{command[0]} cannot be run: {error.strerror}") from None
    output = done.stdout + done.stderr
    if done.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"error|fatal", line, re.IGNORECASE)]
        line = (telling or lines[-1:] or [f"exit status {done.returncode}"])[0]
        raise UnusableError(f"{command[0]} does not work: {line}")
    return output


def _program(name: str, environment: Mapping[str, str]) -> Path:
    """Return the path of a program, given its path or a name on PATH."""
    return Path(shutil.which(name, path=environment.get("PATH", os.defpath)) or name)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers in a text."""
    return tuple(map(int, re.findall(r"\d+", text)))
