"""The C++ examples, built by CMake against the wheel alone, leave the bytes that Python leaves."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compilers
import cuda_backend
import numpy as np
import pytest
import scripts
from compilers import CXX, NVCC, NVCC_FLAGS
from folders import ROOT, TESTS

import mpembed as mpe

EXAMPLES = ROOT / "examples" / "cpp"
ROWS, BATCH, INDICES, DIM = 5000, 64, 96, 16
LIBRARY = "libmpembed.dylib" if os.uname().sysname == "Darwin" else "libmpembed.so"


def draws() -> Iterator[int]:
    """Yield the examples' indices."""
    state = 1

    def number() -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % ROWS

    while True:
        a, b = number(), number()
        yield a * b // ROWS


@pytest.fixture(scope="module")
def by_python() -> bytes:
    """The packed rows and the outputs after the examples' training, by a collection."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", ROWS, DIM, precision="int4")],
        cache=mpe.CacheConfig(num_sets=4, policy="lfu", ways=32),
        optimizer=mpe.RowwiseAdagrad(lr=0.1, eps=1e-8),
        seed=7,
    )
    stream = draws()
    offsets = np.cumsum([0, *(b % 4 for b in range(BATCH))])
    for _ in range(200):
        out = emb.forward(np.array([next(stream) for _ in range(INDICES)]), offsets)
        emb.backward(out - np.float32(1))
    indices = np.array([next(stream) for _ in range(INDICES)])
    out = emb.forward(indices, offsets, training=False)
    emb.flush()
    assert emb.stats()["t"]["evictions"] > 1000
    return bytes(emb.state_arrays()["table.t.rows"].tobytes() + out.tobytes())


def written(program: Path, folder: Path, **environment: str) -> bytes:
    """Run an example and return what it wrote."""
    file = folder / "state"
    shown = compilers.run([program, file], env={**os.environ, **environment}, cwd=folder)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", shown)]
    assert not losses or losses[-1] < 0.6 * losses[0]
    return file.read_bytes()


def sources(folder: Path) -> Path:
    """Return a copy of the examples far from the headers of the source tree."""
    return Path(shutil.copytree(EXAMPLES, folder / "examples"))


@pytest.fixture(scope="module", params=list(CXX))
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, package_alone: Path
) -> Path:
    """The example for the CPU, by each compiler."""
    folder = tmp_path_factory.mktemp("examples")
    found = f"mpembed_DIR={package_alone / 'mpembed' / 'cmake'}"
    compilers.cmake(sources(folder), folder / "build", CXX[request.param], found)
    return folder / "build" / "train"


def test_the_examples_are_short() -> None:
    lines = {
        name: (EXAMPLES / f"{name}.cpp").read_text().splitlines() for name in ("train", "serve")
    }
    assert len(lines["train"]) <= 60
    assert len(lines["serve"]) < 20


def test_a_checkpoint_of_pythons_is_served(program: Path, tmp_path: Path) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("a", 50, 5, precision="int8"), mpe.TableConfig("b", 20, 3)],
        cache=mpe.CacheConfig(num_sets=1, ways=8),
        optimizer=mpe.Adam(),
    )
    for _ in range(3):  # cached rows differ from their tables
        emb.backward(emb.forward(np.array([0, 7, 0]), np.array([0, 2, 3])))
    emb.save(tmp_path / "model")
    shown = compilers.run([program.with_name("serve"), tmp_path / "model"])
    expected = emb.forward(np.array([0, 0]), np.array([0, 1, 2]), training=False)
    assert np.array([float(line) for line in shown.split()], np.float32).tobytes() == (
        expected.tobytes()
    )


def test_the_cpu_example_writes_pythons_bytes(
    program: Path, by_python: bytes, tmp_path: Path
) -> None:
    assert written(program, tmp_path) == by_python


@pytest.mark.parametrize("variables", [{"MPEMBED_ISA": "base"}, {"MPEMBED_NUM_THREADS": "3"}])
def test_for_every_level_and_thread_count(
    program: Path, by_python: bytes, tmp_path: Path, variables: dict[str, str]
) -> None:
    assert written(program, tmp_path, **variables) == by_python


def test_what_is_wrong_is_said(program: Path, tmp_path: Path) -> None:
    serve = program.with_name("serve")
    (tmp_path / "text").write_text("no checkpoint")
    for called, status, text in [
        ([program], 2, "usage"),
        ([program, tmp_path / "no" / "f"], 1, "cannot write"),
        ([serve, tmp_path / "no" / "f"], 1, "No such file"),
        ([serve, tmp_path / "text"], 1, f"{tmp_path / 'text'}: is damaged or not a checkpoint"),
    ]:
        done = subprocess.run(called, capture_output=True, text=True)
        assert done.returncode == status
        assert text in done.stderr


@pytest.mark.exhaustive
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_the_cpu_example_by_nvcc(package_alone: Path, by_python: bytes, tmp_path: Path) -> None:
    package, source = package_alone / "mpembed", sources(tmp_path)
    flags = [*NVCC_FLAGS, "-arch=sm_80", f"-I{package / 'include'}"]
    files = ["-x", "cu", source / "train.cpp", "-o", tmp_path / "train"]
    link = [f"-L{package / 'lib'}", "-lmpembed", f"-Xlinker=-rpath,{package / 'lib'}"]
    compilers.run([str(NVCC), *flags, *files, *link])
    assert written(tmp_path / "train", tmp_path) == by_python


@pytest.mark.exhaustive
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_the_cuda_example_compiles_by_nvcc(package_alone: Path, tmp_path: Path) -> None:
    """Without the CUDA library: test_the_cuda_example_on_a_device links it, and needs one."""
    flags = [*NVCC_FLAGS, "-arch=sm_80", f"-I{package_alone / 'mpembed' / 'include'}"]
    made = ["-c", sources(tmp_path) / "cuda.cu", "-o", tmp_path / "cuda.o"]
    compilers.run([str(NVCC), *flags, *made])
    assert (tmp_path / "cuda.o").stat().st_size > 0


@pytest.fixture(scope="module")
def emulated(
    tmp_path_factory: pytest.TempPathFactory, package_alone: Path
) -> tuple[Path, list[str | Path]]:
    """A copy of the package with the emulation as its CUDA library, and how to compile for it."""
    if reason := cuda_backend._cannot_emulate():
        pytest.skip(f"gpu: {reason}")
    package = tmp_path_factory.mktemp("emulated") / "mpembed"
    shutil.copytree(package_alone / "mpembed", package)
    library = cuda_backend.with_kernels([], package / "lib" / "libmpembed_cuda.so")
    simt: Any = scripts.load(TESTS / "simt" / "build.py")
    command = [*compilers._GXX, *simt.FLAGS, f"-I{package / 'include'}"]
    link = [library, package / "lib" / LIBRARY, f"-Wl,-rpath,{package / 'lib'}", "-pthread"]
    return package, [*command, "-x", "c++", EXAMPLES / "cuda.cu", "-x", "none", *link]


def test_the_cuda_example_writes_the_same_bytes(
    emulated: tuple[Path, list[str | Path]], by_python: bytes, tmp_path: Path
) -> None:
    """The example itself, on the emulation of its kernels."""
    program = tmp_path / "cuda"
    compilers.run([*emulated[1], "-o", program])
    assert written(program, tmp_path) == by_python
    done = subprocess.run(
        [program, tmp_path / "none"],
        env={**os.environ, "SIMT_DEVICES": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77
    assert "no CUDA device" in done.stderr


@pytest.mark.parametrize("compiler", CXX)
def test_cmake_links_the_cuda_library(
    emulated: tuple[Path, list[str | Path]], compiler: str, tmp_path: Path
) -> None:
    """By its target alone, which brings the other library along."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18...4.0)\nproject(p LANGUAGES CXX)\n"
        "find_package(mpembed 0.1 CONFIG REQUIRED COMPONENTS cuda)\n"
        "add_executable(p p.cpp)\ntarget_link_libraries(p PRIVATE mpembed::cuda)\n"
    )
    (tmp_path / "p.cpp").write_text(
        "#include <mpembed/api.h>\n#include <cstdio>\nint main() {\n"
        '  std::printf("%s %d", mpe_cuda_backend()->name, int(mpe_row_bytes(MPE_format_int4, 16)));'
        "\n}\n"
    )
    found = f"mpembed_DIR={emulated[0] / 'cmake'}"
    compilers.cmake(tmp_path, tmp_path / "build", CXX[compiler], found)
    assert compilers.run([tmp_path / "build" / "p"]) == "cuda 12"


@pytest.mark.gpu
def test_the_cuda_example_on_a_device(by_python: bytes, tmp_path: Path) -> None:
    """By CMake and nvcc against the installed CUDA library; on a GPU or a stand-in for it."""
    library = Path(mpe.get_cmake_dir()).parent / "lib" / "libmpembed_cuda.so"
    if cuda_backend.choice() != "installed" or NVCC is None or not library.exists():
        pytest.skip("needs MPEMBED_TEST_CUDA=installed and nvcc")
    assert importlib.util.find_spec("mpembed._bindings.cuda") is not None
    runtime = mpe.info()["cuda"]["runtime"].capitalize()
    definitions = [f"mpembed_DIR={mpe.get_cmake_dir()}", f"CMAKE_CUDA_COMPILER={NVCC}"]
    definitions += [f"CMAKE_CUDA_RUNTIME_LIBRARY={runtime}"]
    compilers.cmake(sources(tmp_path), tmp_path / "build", compilers._GXX, *definitions)
    assert written(tmp_path / "build" / "cuda", tmp_path) == by_python
