"""Builds the fuzz targets and files to begin with.

As a program: ``python tests/support/fuzz_targets.py FOLDER`` makes FOLDER/checkpoint and
FOLDER/rows, each beside a folder of its first inputs, and prints the commands that run them. With
clang++ (``CXX``) they are linked with libFuzzer, else with standalone.cpp.
"""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path

import compilers
import numpy as np
from folders import ROOT, TESTS

import mpembed as mpe

FUZZ = TESTS / "fuzz"
STEP = ROOT / "kernels" / "step"
READER = [STEP / "json.cpp", *sorted([*STEP.glob("manifest*.cpp"), *STEP.glob("checkpoint*.cpp")])]
# The library keeps its list of the user's own optimizers to itself: a target has one of its own.
OWN = ROOT / "kernels" / "cpu" / "shared" / "own_optimizers.cpp"
SOURCES = {"checkpoint": [*READER, OWN], "rows": []}
LIBFUZZER = "clang" in compilers._GXX[0]
# Not in -fsanitize=undefined: it is defined on x86, but not in C++.
CHECKS = "address,undefined,float-cast-overflow"
FLAGS = ["-std=c++17", "-O2", "-g1", f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all"]
FLAGS += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'kernels'}", f"-I{FUZZ}", "-ffp-contract=off"]


def build(source: Path, program: Path, others: list[Path]) -> Path:
    """Compile a target with what it tests, and link it."""
    compiler: list[object] = [*compilers._GXX, *FLAGS]
    libraries = Path(mpe.get_cmake_dir()).parent / "lib"
    link: list[object] = [f"-L{libraries}", "-lmpembed", f"-Wl,-rpath,{libraries}"]
    if LIBFUZZER:
        compilers.run([*compiler, "-fsanitize=fuzzer", source, *others, *link, "-o", program])
        return program
    traced = [*compiler, "-fsanitize-coverage=trace-pc", source, *others]
    compilers.run([*traced, standalone(program.parent), *link, "-o", program])
    return program


@functools.cache
def standalone(folder: Path) -> Path:
    """Compile what stands in for libFuzzer, once a folder."""
    made = folder / "standalone.o"
    command = [*compilers._GXX, *FLAGS, *compilers.WARNINGS, "-c", FUZZ / "standalone.cpp"]
    compilers.run([*command, "-o", made])
    return made


def named(name: str, folder: Path) -> Path:
    """Build a target by its name."""
    return build(FUZZ / f"{name}_target.cpp", folder / name, SOURCES[name])


def first_checkpoints(folder: Path) -> None:
    """Write a small checkpoint with names that need escapes, and one without a cache."""
    for name, cache in (("cached", mpe.CacheConfig(num_sets=1, ways=8, policy="lfu")), ("", None)):
        emb = mpe.EmbeddingBagCollection(
            [mpe.TableConfig('a\u00e9"\\', 20, 4, "int4"), mpe.TableConfig("b", 0, 4)],
            cache=cache,
            optimizer=mpe.Adam(),
        )
        emb.backward(emb.forward(np.array([1, 3]), np.array([0, 2, 2])))
        emb.save(folder / (name or "plain"))


def first_rows(folder: Path) -> None:
    """Write, for every format, a row of each of a few widths, and values for one."""
    rng = np.random.default_rng(0)
    for precision, number in mpe.registry.FORMATS.items():
        for dim in (1, 7, 24):
            x = (rng.standard_normal((1, dim)) * 10.0 ** rng.integers(-6, 4)).astype(np.float32)
            row = mpe.ops.quantize(x, precision)
            draws = rng.bytes(2 * dim)
            start = folder / f"{precision}_{dim}"
            start.write_bytes(bytes([number, dim - 1, 0]) + row.tobytes() + draws)
            values = bytes([number, dim - 1, 1]) + x.tobytes() + draws
            start.with_name(f"{start.name}_values").write_bytes(values)


FIRST = {"checkpoint": first_checkpoints, "rows": first_rows}


def first_inputs(name: str, folder: Path) -> Path:
    """Make a folder of the inputs that a target begins with."""
    made = folder / f"{name}-inputs"
    made.mkdir(exist_ok=True)
    FIRST[name](made)
    return made


def main() -> None:
    """Build all targets into the folder that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        command = [named(name, folder), "-max_total_time=60", first_inputs(name, folder)]
        print(shlex.join(map(str, command)))


if __name__ == "__main__":
    main()
