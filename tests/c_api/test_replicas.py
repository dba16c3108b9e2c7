"""The CUDA kernels equal the CPU's byte for byte: every function of the C API, call by call.

The kernel files themselves run here, compiled by g++ on the SIMT emulation; tests marked `gpu` run
against the installed CUDA extension instead where `MPEMBED_TEST_CUDA` says so.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_backend
import pytest
import scripts
from folders import ROOT, TESTS

from mpembed import registry
from mpembed._bindings import contract

HERE = Path(__file__).resolve().parent
DRIVER = [HERE / f"{name}.cpp" for name in ("scenario", "groups", "far", "hits")]
# These need an emulation, whose allocations can fail and which has graphs.
EMULATED = [HERE / f"{name}.cpp" for name in ("memory", "graph")]
EXHAUSTIVE = pytest.mark.exhaustive
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the emulation needs Linux")


program: Any = scripts.load(HERE / "replicas.py")
simt: Any = scripts.load(TESTS / "simt" / "build.py")


def build(folder: Path, **options: Any) -> Path:
    sources = [*cuda_backend.KERNELS, *DRIVER, *EMULATED]
    library: Path = simt.build(sources, folder / "replicas.so", **options)
    return library


def run_elsewhere(library: Path, count: int, seed: int, **environment: str) -> None:
    """Run scenarios in a new process."""
    program = [sys.executable, str(HERE / "replicas.py"), str(library), str(count), str(seed)]
    done = subprocess.run(
        program,
        env={**os.environ, **environment},
        cwd=library.parent,  # where no source folder of the package lies
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte equal" in done.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replicas") / "replicas.so"
    return cuda_backend.with_kernels([*DRIVER, *EMULATED], out)


def driver_alone(folder: Path) -> Path:
    """Compile the driver, without kernels."""
    out, include = folder / "driver.so", f"-I{ROOT / 'include'}"
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++17", "-O1", "-fPIC", "-shared"]
    subprocess.run([*command, include, *map(str, DRIVER), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def cpu_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The driver with the CPU backend as both."""
    return program.Replicas(driver_alone(tmp_path_factory.mktemp("driver")))


@pytest.fixture(scope="module")
def replicas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The driver, and the kernels that MPEMBED_TEST_CUDA names."""
    if cuda_backend.choice() == "emulation":
        return program.Replicas(request.getfixturevalue("library"))
    request.getfixturevalue("cuda")
    extension = importlib.util.find_spec("mpembed._bindings.cuda")
    assert extension is not None
    assert extension.origin is not None
    return program.Replicas(driver_alone(tmp_path_factory.mktemp("driver")), Path(extension.origin))


def drawn(default: int, count: int, seed: int) -> pytest.MarkDecorator:
    """Parametrise with scenarios, of which some are for every run."""
    found = [
        pytest.param(case, id=f"{case['seed']:x}", marks=[EXHAUSTIVE] if i >= default else [])
        for i, case in enumerate(program.cases(count, seed))
    ]
    return pytest.mark.parametrize("case", found)


@pytest.mark.gpu
@drawn(9, 40, 0)
def test_random_training(replicas: Any, case: dict[str, int]) -> None:
    assert replicas.scenario(case) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", [-1, 0])
def test_one_lookup_of_many_groups(replicas: Any, seed: int, policy: int) -> None:
    case = {**next(program.cases(1, seed)), "seed": seed, "policy": policy, "batch_size": 3}
    assert replicas.groups({**case, "longest": 4, "rows": 20}) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [7, *(pytest.param(n, marks=EXHAUSTIVE) for n in (64, 300))])
@pytest.mark.parametrize("optimizer", registry.OPTIMIZERS)
def test_a_hot_row_has_blocks_of_its_own(replicas: Any, optimizer: str, dim: int) -> None:
    """Few rows and long bags: more than 64 occurrences a row, so that partial sums are combined."""
    number = registry.OPTIMIZERS[optimizer]
    case = next(program.cases(1, dim + number))
    bags = 6 if dim == 7 else 16
    wide = {"dim": dim, "rows": 1, "batch_size": bags, "longest": 90, "steps": 2, "drop": 0}
    assert replicas.scenario({**case, **wide, "optimizer": number}) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("policy", [program.NO_CACHE, 1])
def test_as_many_batches_as_an_update_takes(replicas: Any, policy: int) -> None:
    case = next(program.cases(1, 4))
    small = {"rows": 20, "batch_size": 3, "longest": 9, "steps": 2, "dim": 9, "drop": 1}
    many = {"batches": contract.MAX_GRADIENTS, "policy": policy}
    assert replicas.scenario({**case, **small, **many}) == ""


@drawn(9, 18, 5)
def test_any_layout_gives_the_same_bytes(cpu_alone: Any, case: dict[str, int]) -> None:
    """Arrays of their own, and rows and states side by side without padding."""
    assert cpu_alone.scenario({**case, "layout": 0, "other_layout": 1}) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [12, *(pytest.param(n, marks=EXHAUSTIVE) for n in (64, 300))])
@pytest.mark.parametrize("optimizer", registry.OPTIMIZERS)
def test_a_hit_touches_neither_the_table_nor_its_states(
    replicas: Any, optimizer: str, dim: int
) -> None:
    number = registry.OPTIMIZERS[optimizer]
    case = next(program.cases(1, dim + number))
    cached = {"dim": dim, "optimizer": number, "policy": 0, "sets": 64, "rows": 9, "longest": 9}
    assert replicas.hits({**case, **cached, "drop": 0}) == ""


@pytest.mark.gpu
def test_a_batch_larger_than_the_cache(replicas: Any) -> None:
    for policy in (0, 1):
        case = next(program.cases(1, policy))
        large = {"rows": 90, "batch_size": 30, "longest": 9, "sets": 2, "steps": 4, "dim": 9}
        assert replicas.scenario({**case, **large, "policy": policy, "drop": 0}) == ""


@pytest.mark.gpu
def test_hundreds_of_tables(replicas: Any) -> None:
    case = next(program.cases(1, 2))
    many = {"copies": 15, "rows": 3, "batch_size": 2, "longest": 3, "steps": 3, "dim": 5}
    assert replicas.scenario({**case, **many, "sets": 5}) == ""


@drawn(9, 20, 3)
def test_launches_of_a_graph(library: Path, case: dict[str, int]) -> None:
    """A step captured through the C API, with parameters that change on the device."""
    assert program.Replicas(library).launches(case) == ""


@pytest.mark.gpu
def test_rows_beyond_4_gib(replicas: Any) -> None:
    # VGPU_PAGEABLE lets the kernels of a stand-in reach all host memory, as an emulation's do.
    mapped = cuda_backend.choice() == "emulation" or os.environ.get("VGPU_PAGEABLE") == "1"
    assert replicas.far_rows(mapped) == ""


@pytest.mark.parametrize("policy", [0, 1])
def test_admission_without_memory_changes_nothing(library: Path, policy: int) -> None:
    replicas = program.Replicas(library)
    case = {**next(program.cases(1, 1)), "policy": policy, "sets": 2, "rows": 20, "dim": 9}
    report, failures = replicas.no_memory(case)
    assert report == ""
    assert failures == 1  # it takes all of its workspace at once


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=EXHAUSTIVE) for n in (2, 3))])
@pytest.mark.parametrize("resident", [pytest.param("1", marks=EXHAUSTIVE), "8"])
def test_any_schedule_gives_the_same_bytes(library: Path, seed: int, resident: str) -> None:
    schedule = {"SIMT_SEED": str(seed), "SIMT_RESIDENT": resident, "SIMT_PREEMPT": "0.4"}
    run_elsewhere(library, 4, seed, **schedule)


@pytest.mark.exhaustive
def test_preempted_at_every_access(tmp_path: Path) -> None:
    """Threads also change places between plain loads and stores: lost updates show."""
    library = build(tmp_path, instrument=True)
    run_elsewhere(library, 12, 7, SIMT_SEED="7")


@pytest.mark.exhaustive
def test_no_access_out_of_bounds(tmp_path: Path) -> None:
    """The same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    runtime = []
    for name in ("libasan.so", "libstdc++.so"):
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
        runtime.append(found.stdout.strip())
    library = build(tmp_path, sanitize=True)
    options = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"}
    run_elsewhere(library, 10, 5, **options)
