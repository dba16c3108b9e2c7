"""Compile CUDA sources with g++ against the SIMT emulation.

As a program: ``python tests/simt/build.py -o OUT [--sanitize] SOURCE... [-- FLAG...]``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIMT = Path(__file__).resolve().parent
ROOT = SIMT.parent.parent
ENGINE = sorted((SIMT / "emu").glob("*.cpp"))
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-DMPE_SIMT=1"),
    *(f"-I{SIMT}", f"-I{ROOT / 'include'}", f"-I{ROOT / 'kernels'}"),
]
# The compiler's half of ThreadSanitizer; emu/instrument.cpp is the other.
INSTRUMENT = ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1", "-DSIMT_INSTRUMENT"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def cache_folder() -> Path:
    """Return the folder for objects: SIMT_BUILD, else build/simt if that is writable."""
    chosen = os.environ.get("SIMT_BUILD")
    folder = Path(chosen) if chosen else ROOT / "build" / "simt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"simt-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def run(command: Sequence[str]) -> None:
    """Run the compiler; its messages become the error's."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")


def is_fresh(target: Path, depends: Path) -> bool:
    """Return whether the target is newer than all files that its compilation read."""
    try:
        words = depends.read_text().replace("\\\n", " ").partition(":")[2]
        made = target.stat().st_mtime_ns
        files = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|\S)+", words)]
        return all(Path(file).stat().st_mtime_ns < made for file in files)
    except OSError:
        return False


def compile_source(source: Path, command: Sequence[str]) -> Path:
    """Compile one source, unless there is a newer object with the same flags."""
    key = hashlib.sha256("\0".join([*command, str(source)]).encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{key}.o"
    depends = target.with_suffix(".d")
    if is_fresh(target, depends):
        return target
    # Another process may compile the same file: only whole files get the final names.
    scratch = target.with_suffix(f".{os.getpid()}.o")
    scratch_depends = scratch.with_suffix(".d")
    begun = target.with_suffix(f".{os.getpid()}.begun")
    begun.touch()
    try:
        made = ["-MD", "-MF", str(scratch_depends), "-o", str(scratch)]
        run([*command, "-c", "-x", "c++", str(source), *made])
        # A source edited during the compilation must look newer than its object.
        times = begun.stat()
        os.utime(scratch, ns=(times.st_mtime_ns, times.st_mtime_ns))
        scratch_depends.replace(depends)
        scratch.replace(target)
    finally:
        for path in (begun, scratch, scratch_depends):
            path.unlink(missing_ok=True)
    return target


def build(
    sources: Sequence[Path | str],
    out: Path | str,
    sanitize: bool = False,
    extra: Sequence[str] = (),
    instrument: bool = False,
) -> Path:
    """Compile .cu and .cpp files and the engine into `out`.

    `out` is a shared object if its name ends in .so, else a program. `sanitize` turns on
    AddressSanitizer and UndefinedBehaviorSanitizer; to load such a shared object into Python,
    LD_PRELOAD must name libasan. `instrument` makes each access to memory a point where another
    thread may run (not together with `sanitize`, and with GCC only). Raises RuntimeError with the
    compiler's messages.
    """
    out = Path(out)
    if sanitize and instrument:
        raise ValueError("sanitize and instrument exclude each other")
    flags = [*FLAGS, *(SANITIZERS if sanitize else []), *extra]
    command = [*shlex.split(os.environ.get("CXX", "g++")), *flags]
    kernels = [*command, *(INSTRUMENT if instrument else [])]
    jobs = [(Path(source).resolve(), kernels) for source in sources]
    jobs += [(source, command) for source in ENGINE]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = [str(done) for done in pool.map(lambda job: compile_source(*job), jobs)]
    # -rdynamic and the dynamic symbols give messages the kernels' names. With -Bsymbolic a CUDA
    # runtime in the same process cannot replace the emulation.
    kind = ["-shared", "-Wl,-Bsymbolic"] if out.suffix == ".so" else ["-rdynamic"]
    scratch = out.with_name(f"{out.name}.{os.getpid()}")
    run([*command, *kind, *objects, "-o", str(scratch), "-ldl", "-pthread"])
    scratch.replace(out)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--instrument", action="store_true")
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    try:
        extra = words[cut + 1 :]
        build(options.sources, options.out, options.sanitize, extra, options.instrument)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
