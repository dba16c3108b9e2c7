"""The training step in C++: against its functions one by one, without memory, and what it refuses.

Every test runs on the CPU backend; those marked `gpu` on the CUDA kernels, emulated or installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import sys
from pathlib import Path

import compilers
import cuda_backend
import pytest
from folders import ROOT

HERE = Path(__file__).resolve().parent / "step"
DRIVER = sorted(HERE.glob("*.cpp"))
EXHAUSTIVE = pytest.mark.exhaustive
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the driver is built for Linux")


class Driver:
    """The driver's functions on one backend."""

    def __init__(self, library: Path, kernels: Path | None) -> None:
        spec = importlib.util.find_spec("mpembed._bindings.kernels")
        assert spec is not None
        assert spec.origin is not None
        core = ctypes.CDLL(spec.origin, mode=ctypes.RTLD_GLOBAL)  # it brings the step along
        self.library = ctypes.CDLL(str(library))
        name = "mpe_cpu_backend" if kernels is None else "mpe_cuda_backend"
        get = getattr(core if kernels is None else ctypes.CDLL(str(kernels)), name)
        get.restype = ctypes.c_void_p
        self.backend = ctypes.c_void_p(get())
        for function in ("step_scenario", "step_no_memory", "step_refusals"):
            getattr(self.library, function).restype = ctypes.c_char_p

    def scenario(self, seed: int) -> str:
        """Return what differed between the step and its functions, or nothing."""
        report: bytes = self.library.step_scenario(self.backend, ctypes.c_uint64(seed))
        return report.decode()

    def no_memory(self, seed: int) -> tuple[str, int]:
        """Return what was wrong where memory was short, or nothing, and how often it was."""
        failures = ctypes.c_int64()
        report: bytes = self.library.step_no_memory(
            self.backend, ctypes.c_uint64(seed), ctypes.byref(failures)
        )
        return report.decode(), failures.value

    def refusals(self) -> str:
        """Return what was wrongly taken, or nothing."""
        report: bytes = self.library.step_refusals(self.backend)
        return report.decode()


def driver_alone(folder: Path) -> Path:
    """Compile the driver, without kernels."""
    out = folder / "step.so"
    command = [*shlex.split(os.environ.get("CXX", "g++")), *compilers.WARNINGS]
    command += ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'include'}"]
    compilers.run([*command, *DRIVER, "-o", out])
    return out


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(driver_alone(tmp_path_factory.mktemp("step")), None)


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The driver, and the kernels that MPEMBED_TEST_CUDA names."""
    folder = tmp_path_factory.mktemp("step")
    if cuda_backend.choice() == "emulation":
        library = cuda_backend.with_kernels(DRIVER, folder / "step.so")
        return Driver(library, library)
    request.getfixturevalue("cuda")
    extension = importlib.util.find_spec("mpembed._bindings.cuda")
    assert extension is not None
    assert extension.origin is not None
    return Driver(driver_alone(folder), Path(extension.origin))


SEEDS = [*range(40), *(pytest.param(seed, marks=EXHAUSTIVE) for seed in range(40, 200))]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_step_is_its_functions(cpu: Driver, seed: int) -> None:
    assert cpu.scenario(seed) == ""


@pytest.mark.gpu
@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=EXHAUSTIVE) for seed in range(6, 12))]
)
def test_so_it_is_on_a_device(device: Driver, seed: int) -> None:
    assert device.scenario(seed) == ""


@pytest.mark.parametrize("seed", range(20))
def test_want_of_memory_anywhere(cpu: Driver, seed: int) -> None:
    """Nothing has changed, or what step.h says; no workspace and no pin is left."""
    report, failures = cpu.no_memory(seed)
    assert report == ""
    assert failures > 20


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_on_a_device_without_memory(device: Driver, seed: int) -> None:
    report, failures = device.no_memory(seed)
    assert report == ""
    assert failures > 20


def test_refusals_name_what_is_wrong_and_change_nothing(cpu: Driver) -> None:
    assert cpu.refusals() == ""
