"""The SIMT emulation itself: correct kernels work on it, and seeded mistakes are found."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import scripts

HERE = Path(__file__).resolve().parent
SOURCES = [
    HERE / "checks" / f"{n}.cu"
    for n in ("kernels", "intrinsics", "cub", "faults", "runtime", "graph")
]
# Checks named fault_* end the process; little_memory needs environment variables.
CHECKS = sorted(
    set(re.findall(r"^CHECK\((?!fault_)(\w+)\)", "".join(s.read_text() for s in SOURCES), re.M))
    - {"little_memory"}
)
SCHEDULES = [{"SIMT_SCHEDULE": "lockstep"}, *({"SIMT_SEED": str(seed)} for seed in (1, 2, 3))]
# These look for failures that only a shuffled schedule causes.
RANDOM_ONLY = {"missing_syncwarp", "missing_syncthreads"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an ELF emulation")


def load_build() -> ModuleType:
    return scripts.load(HERE / "build.py")


def run(program: Path, *checks: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIMT_")}
    return subprocess.run(
        [program, *checks],
        capture_output=True,
        text=True,
        timeout=120,
        errors="replace",
        env=clean | environment,
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = load_build().build(SOURCES, tmp_path_factory.mktemp("simt") / "checks")
    return out


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = load_build().build(SOURCES, tmp_path_factory.mktemp("asan") / "checks", True)
    return out


@pytest.mark.parametrize("environment", SCHEDULES, ids=lambda e: "-".join(e.values()))
def test_checks(plain: Path, environment: dict[str, str]) -> None:
    names = [c for c in CHECKS if "SIMT_SEED" in environment or c not in RANDOM_ONLY]
    done = run(plain, *names, **environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_checks_under_the_sanitizers(sanitized: Path) -> None:
    done = run(sanitized, *CHECKS, "many_threads")
    assert done.returncode == 0, done.stderr


def test_checks_with_other_settings(plain: Path) -> None:
    for environment in (
        {"SIMT_RESIDENT": "1", "SIMT_PREEMPT": "0"},
        {"SIMT_RESIDENT": "9", "SIMT_PREEMPT": "1", "SIMT_STACK": "32", "SIMT_SMS": "1"},
        {"SIMT_PROTECT": "1", "SIMT_DEVICES": "3"},
    ):
        # With one block at a time, threads of one block cannot wait for those of the next.
        names = [c for c in CHECKS if environment.get("SIMT_RESIDENT") != "1" or c != "relay"]
        done = run(plain, *names, **environment)
        assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_instrumented(tmp_path: Path) -> None:
    """Every access to memory may let another thread run, and atomics are still atomic."""
    out = load_build().build(SOURCES, tmp_path / "checks", instrument=True)
    for seed in "123":
        done = run(out, *CHECKS, "fault_plain_accesses", SIMT_SEED=seed)
        assert done.returncode == 0, done.stderr


def test_ucontext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching fibers on processors without assembly of their own works."""
    module = load_build()
    fiber = tmp_path / "fiber.cpp"
    fiber.write_text('#define SIMT_UCONTEXT 1\n#include "emu/fiber.cpp"\n')
    monkeypatch.setattr(
        module, "ENGINE", [*(e for e in module.ENGINE if e.name != "fiber.cpp"), fiber]
    )
    done = run(module.build(SOURCES, tmp_path / "checks"), *CHECKS)
    assert done.returncode == 0, done.stderr


FAULTS = {
    "different_collectives": r"lane \d+ of the same warp is at a different collective, __\w+ at",
    "different_sites": r"__syncwarp: .* at a different collective, __syncwarp at .*faults",
    "omits_caller": r"__shfl_sync: the mask 0xfffffffe omits the caller, lane 0",
    "masks_disagree": r"the masks disagree: 0x|omits the caller",
    "exited_before": r"__ballot_sync: the mask 0xffffffff names lanes that have exited \(0x00000080"
    r"|__ballot_sync: lane 7 of the mask 0xffffffff exits",
    "exits_later": r"names lanes that have exited \(0x00000080|lane 7 of the mask 0xffffffff exits",
    "no_such_lane": r"names lanes that the block does not have \(it has 0x0000ffff",
    "bad_width": r"__shfl_down_sync: the width 3 is no power of two",
    "barrier_and_collective": r"(?s)deadlock.* 2 thread\(s\)[^\n]* wait in __syncwarp, mask 0xfff"
    r".* 62 thread\(s\)[^\n]* wait in __syncthreads",
    "different_barriers": r"__syncthreads: other threads of the block are at a different barrier",
    "barrier_in_collective": r"__any_sync: lane \d+ of the same warp is at a different",
    "misaligned": r"misaligned address 0x",
}
WHERE = (
    r"SIMT fault in \(anonymous namespace\)::mistake\(int, int\*\), "
    r"block \(0,0,0\), thread \(\d+,0,0\)"
)


def test_asking_a_destroyed_stream_aborts(plain: Path) -> None:
    done = run(plain, "fault_destroyed_stream")
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert re.search(r"stream 0x[0-9a-f]+ was destroyed", done.stderr), done.stderr


@pytest.mark.parametrize("environment", [SCHEDULES[0], SCHEDULES[1]], ids=["lockstep", "random"])
@pytest.mark.parametrize("name", FAULTS)
def test_misuse_aborts(plain: Path, name: str, environment: dict[str, str]) -> None:
    done = run(plain, f"fault_{name}", **environment)
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert re.search(FAULTS[name], done.stderr), done.stderr
    assert re.match(WHERE, done.stderr), done.stderr


def test_misuse_as_a_launch_error(plain: Path) -> None:
    done = run(plain, "fault_bad_width", SIMT_FAULT="error")
    assert done.returncode == 3
    assert "launch: cudaSuccess, then cudaErrorLaunchFailure" in done.stderr


def test_endless_wait(plain: Path) -> None:
    done = run(plain, "fault_spin", SIMT_TIMEOUT="0.2")
    assert done.returncode == -signal.SIGABRT
    assert "takes longer than SIMT_TIMEOUT" in done.stderr


GUARDS = {
    "write_past_end": r"byte 400 of an allocation of 400 bytes was written",
    "write_before": r"byte -4 of an allocation of 400 bytes was written",
    "load_past_end": r"4 bytes at 0x\w+ are not in an allocation",
    "atomic_past_end": r"4 bytes at 0x\w+ are not in an allocation",
    "load_after_free": r"4 bytes at 0x\w+ are not in an allocation",
    "shared_past_end": r"a write past the end of shared array tile",
    "too_much_shared": r"shared array (tile|other): \d+ bytes in all.*48 KiB",
}


@pytest.mark.parametrize("name", GUARDS)
def test_memory_faults(plain: Path, name: str) -> None:
    done = run(plain, f"fault_{name}")
    assert done.returncode == -signal.SIGABRT
    assert re.search(GUARDS[name], done.stderr), done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [*(g for g in GUARDS if g != "too_much_shared"), "read_past_end", "read_after_free"]
)
def test_memory_faults_under_the_sanitizers(sanitized: Path, name: str) -> None:
    done = run(sanitized, f"fault_{name}")
    assert done.returncode not in (0, 2)
    assert re.search(
        r"use-after-poison|not in an allocation|index 32 out of bounds", done.stderr
    ), done.stderr


def test_stack_overflow(plain: Path) -> None:
    done = run(plain, "fault_stack")
    assert done.returncode == -signal.SIGSEGV
    assert "stack overflow (SIMT_STACK)" in done.stderr


def test_host_code_on_device_memory(plain: Path) -> None:
    done = run(plain, "fault_host_access", SIMT_PROTECT="1")
    assert done.returncode == -signal.SIGSEGV
    assert run(plain, "fault_host_access").returncode == 0


def test_failing_allocations(plain: Path) -> None:
    done = run(plain, "little_memory", SIMT_MEMORY="1", SIMT_FAIL_ALLOC="3")
    assert done.returncode == 0, done.stderr


def test_same_seed_same_schedule(plain: Path) -> None:
    """A mistake that a seed shows is shown again."""
    first, again, other = (
        run(plain, "fault_different_collectives", SIMT_SEED=seed).stderr for seed in "778"
    )
    assert first == again
    assert first != other


def test_log(plain: Path) -> None:
    done = run(plain, "many_threads", SIMT_LOG="1")
    shape = r"block_sums\(.*\)<<<\(391,1,1\), \(256,1,1\)>>> 100096 threads, [0-9.]+ ms\n"
    assert re.search(shape, done.stderr), done.stderr


@pytest.mark.parametrize("setting", ["SIMT_SCHEDULE=lock", "SIMT_SEED=x", "SIMT_PREEMPT=2"])
def test_bad_settings(plain: Path, setting: str) -> None:
    name, value = setting.split("=")
    done = run(plain, "many_threads", **{name: value})
    assert done.returncode == 2
    assert f"{setting} is not understood" in done.stderr


def test_objects_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_BUILD", str(tmp_path / "objects"))
    module = load_build()
    source, header = tmp_path / "one.cu", tmp_path / "value.h"
    header.write_text("#define VALUE 3\n")
    source.write_text('#include "value.h"\nint value = VALUE;\n')
    for path in (source, header):
        os.utime(path, (1e9, 1e9))  # an edit within the clock's tick would compile once more
    command = ["g++", *module.FLAGS]
    target = module.compile_source(source, command)
    made = target.stat().st_ino
    assert module.compile_source(source, command) == target
    assert target.stat().st_ino == made
    assert module.compile_source(source, [*command, "-DOTHER"]) != target
    header.write_text("#define VALUE 4\n")
    assert module.compile_source(source, command) == target
    assert target.stat().st_ino != made
    source.write_text("int value = unknown;\n")
    with pytest.raises(RuntimeError, match="unknown"):
        module.compile_source(source, command)
