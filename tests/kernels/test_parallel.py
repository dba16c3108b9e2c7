"""The thread pool and the kernels on it, from C++, plain and under ThreadSanitizer.

`parallel_driver.cpp` checks the pool, `kernels_driver.cpp` trains with every kernel of a step.
"""

import os
import signal
from pathlib import Path

import pytest
from drivers import build, built, run
from folders import ROOT

HERE = Path(__file__).parent
KERNELS = sorted((ROOT / "kernels" / "cpu").rglob("*.cpp"))
POOL = [ROOT / "kernels" / "cpu" / "shared" / "parallel.cpp", HERE / "parallel_driver.cpp"]
TRAINING = [*KERNELS, HERE / "kernels_driver.cpp"]
CHECKS = [
    "once",
    "memory",
    "threads",
    "apart",
    "nested",
    "concurrent",
    "limits",
    "forked",
    "leave",
    "floats",
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("parallel") / "driver", POOL)


def build_checked(target: Path, sources: list[Path], argument: str) -> Path:
    """Compile a driver with ThreadSanitizer."""
    done = build(target, sources, "-O1", "-fsanitize=thread")
    if done.returncode != 0 and "tsan" in done.stderr:
        pytest.skip("the compiler has no ThreadSanitizer library")
    assert done.returncode == 0, done.stderr
    if "unexpected memory mapping" in run(target, argument).stderr:
        pytest.skip("this kernel's address layout does not suit ThreadSanitizer")
    return target


@pytest.fixture(scope="module")
def checked_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checked(tmp_path_factory.mktemp("parallel_tsan") / "driver", POOL, "limits")


@pytest.mark.parametrize("check", CHECKS)
def test_pool(driver: Path, check: str) -> None:
    done = run(driver, check)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("check", CHECKS)
def test_pool_has_no_races(checked_driver: Path, check: str) -> None:
    done = run(checked_driver, check, TSAN_OPTIONS="halt_on_error=1 atexit_sleep_ms=0")
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_kernels_have_no_races_and_one_answer(tmp_path: Path) -> None:
    driver = build_checked(tmp_path / "kernels", TRAINING, "1")
    serial = run(driver, "1")
    assert serial.returncode == 0, serial.stderr
    for threads in ("2", "5"):
        done = run(driver, threads, TSAN_OPTIONS="halt_on_error=1 atexit_sleep_ms=0")
        assert done.returncode == 0, done.stderr
        assert done.stdout == serial.stdout


def test_throwing_task_terminates(driver: Path) -> None:
    done = run(driver, "throwing")
    assert done.returncode == -signal.SIGABRT
    assert "thrown by a task" in done.stderr


@pytest.mark.parametrize("value", ["1", "3", "1024"])
def test_environment(driver: Path, value: str) -> None:
    assert run(driver, "environment", MPEMBED_NUM_THREADS=value).stdout == f"{value} 1\n"


@pytest.mark.parametrize(
    "value", ["0", "-1", "+2", " 2", "2 ", "two", "2.0", "1025", "99999999999999999999"]
)
def test_invalid_environment(driver: Path, value: str) -> None:
    threads = available_cpus()
    assert run(driver, "environment", MPEMBED_NUM_THREADS=value).stdout == f"{threads} 0\n"
    assert run(driver, "environment", MPEMBED_NUM_THREADS="").stdout == f"{threads} 1\n"


def available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), ("7", 7), ("5,2", 5), (" 5 , 2", 5), ("+5", 5), ("5 ", 5), ("1025", 1024)],
)
def test_openmps_variable_counts_where_the_own_is_unset(
    driver: Path, value: str, threads: int
) -> None:
    assert run(driver, "environment", OMP_NUM_THREADS=value).stdout == f"{threads} 1\n"
    both = run(driver, "environment", OMP_NUM_THREADS=value, MPEMBED_NUM_THREADS="3")
    assert both.stdout == "3 1\n"
    empty = run(driver, "environment", OMP_NUM_THREADS=value, MPEMBED_NUM_THREADS="")
    assert empty.stdout == f"{threads} 1\n"


@pytest.mark.parametrize("value", ["", "0", "-2", "two", "2.5", "2x", ",2", "99999999999999999999"])
def test_what_openmp_ignores_is_ignored(driver: Path, value: str) -> None:
    done = run(driver, "environment", OMP_NUM_THREADS=value)
    assert done.stdout == f"{available_cpus()} 1\n"
