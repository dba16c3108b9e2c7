"""bench/gpu.sh and the programs it runs, with stand-ins for those that need a GPU or are slow."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

from mpembed import registry

PARTS = ["device", "build", "info", "tests", "training"]
PARTS += ["memcheck", "racecheck", "initcheck", "synccheck", "benchmarks"]

# Stands in for Python: logs the call, writes what pytest would, runs the real report.
PYTHON = """#!/bin/bash
echo "python $MPEMBED_CUDA_ARCHS $MPEMBED_TEST_CUDA $*" >>"$CALLS"
for word in "$@"; do
  case $word in
    --junitxml=*) cp "$STUBS/tests.xml" "${word#*=}" ;;
    --benchmark-json=*) cp "$STUBS/benchmarks.json" "${word#*=}" ;;
    *gpu_report.py) exec "$REAL" "$@" ;;
  esac
done
case "$*" in *"$FAIL"*) echo "broken on purpose"; exit 3 ;; esac
"""
NVIDIA_SMI = """#!/bin/bash
case "$*" in *noheader*) echo 9.0 ;; *) printf 'name, cap\\nNVIDIA H100, 9.0\\n' ;; esac
"""
SANITIZER = """#!/bin/bash
echo "sanitizer $*" >>"$CALLS"
case "$1" in *"$FAIL"*) exit 86 ;; esac
"""
TESTS = """<testsuites><testsuite>
<testcase classname="test_a" name="good"/>
<testcase classname="test_a" name="bad"><failure message="no"/></testcase>
<testcase classname="test_a" name="none"><skipped message="gpu: there is none"/></testcase>
</testsuite></testsuites>"""
BENCHMARKS = {
    "benchmarks": [
        {
            "group": "gpu forward",
            "name": "test_forward[int4]",
            "stats": {"median": 0.01},
            "extra_info": {"calls": 10, "rows": 1000, "floor_seconds": 0.0005},
        },
        {
            "group": "gpu forward",
            "name": "test_forward_torch",
            "stats": {"median": 0.005},
            "extra_info": {"calls": 10, "rows": 1000},
        },
    ]
}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    folder = tmp_path / "stubs"
    folder.mkdir()
    programs = {"python": PYTHON, "nvidia-smi": NVIDIA_SMI, "compute-sanitizer": SANITIZER}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "tests.xml").write_text(TESTS)
    (folder / "benchmarks.json").write_text(json.dumps(BENCHMARKS))
    return folder


def run(stubs: Path, *arguments: str, fail: str = "nothing") -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{stubs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHON": str(stubs / "python"),
        "STUBS": str(stubs),
        "CALLS": str(stubs / "calls"),
        "REAL": sys.executable,
        "FAIL": fail,
    }
    command = ["bash", str(ROOT / "bench/gpu.sh"), "--out", str(stubs.parent / "out"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_part_runs_and_is_reported(stubs: Path) -> None:
    done = run(stubs)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((stubs.parent / "out/results.json").read_text())
    assert [part["part"] for part in results["parts"]] == PARTS
    assert all(part["status"] == 0 for part in results["parts"])
    assert results["device"].endswith("NVIDIA H100, 9.0")
    assert results["tests"] == {
        "tests": 3,
        "skipped": 1,
        "skipped_for_want_of_a_gpu": 1,
        "failed": ["test_a::bad"],
    }
    torch, int4 = results["benchmarks"]
    assert torch["times_the_floor"] is None
    assert int4["times_the_floor"] == pytest.approx(2)
    assert int4["rows_per_second"] == pytest.approx(1e6)
    assert (stubs.parent / "out/results.txt").read_text() in done.stdout

    calls = (stubs / "calls").read_text().splitlines()
    ours = [call for call in calls if "sanitizer" not in call and "gpu_report" not in call]
    assert all(call.startswith("python 90 installed ") for call in ours)
    assert sum("--no-build-isolation" in call for call in calls) == 1
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    assert [call.split()[1] for call in calls if "sanitizer" in call] == [
        f"--tool={tool}" for tool in tools
    ]


@pytest.mark.parametrize(
    ("fail", "part", "status"), [("pip install", "build", 3), ("racecheck", "racecheck", 86)]
)
def test_what_fails_is_noted_and_the_rest_goes_on(
    stubs: Path, fail: str, part: str, status: int
) -> None:
    done = run(stubs, fail=fail)
    assert done.returncode == 1
    results = json.loads((stubs.parent / "out/results.json").read_text())
    found = {line["part"]: line["status"] for line in results["parts"]}
    assert list(found) == PARTS
    assert {name for name, code in found.items() if code} == {part}
    assert found[part] == status
    assert f"FAILED {status}" in (stubs.parent / "out/results.txt").read_text()


def test_the_results_so_far_are_there_after_each_part(stubs: Path) -> None:
    # It is killed by its second part, as by the end of a loan of the machine.
    (stubs / "python").write_text(
        PYTHON.replace("exit 3 ;; esac", 'kill -9 "$(ps -o ppid= -p $PPID | tr -d " ")" ;; esac')
    )
    done = run(stubs, fail="pip install")
    assert done.returncode == -signal.SIGKILL
    results = json.loads((stubs.parent / "out/results.json").read_text())
    assert [(line["part"], line["status"]) for line in results["parts"]] == [("device", 0)]
    assert "NVIDIA H100, 9.0" in (stubs.parent / "out/results.txt").read_text()


def test_without_results_it_fails(stubs: Path) -> None:
    (stubs / "benchmarks.json").write_text("")
    (stubs / "tests.xml").write_text("")
    done = run(stubs)
    assert done.returncode == 1
    results = json.loads((stubs.parent / "out/results.json").read_text())
    assert results["benchmarks"] == []
    assert "no element found" in results["tests"]["missing"]


def test_a_dry_run_prints_and_does_nothing(stubs: Path) -> None:
    done = run(stubs, "--dry-run")
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [*PARTS, "report"]
    assert not (stubs.parent / "out").exists()
    assert not (stubs / "calls").exists()


def test_what_it_does_not_know_is_an_error(stubs: Path) -> None:
    done = run(stubs, "--fast")
    assert done.returncode == 2
    assert "bash bench/gpu.sh [--dry-run] [--out DIR]" in done.stderr


def test_the_training_compares_and_runs_on_the_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/gpu/gpu_training.py"), "--short", "--device=cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    trained = itertools.product(registry.OPTIMIZERS, [*registry.POLICIES, None])
    expected = [f"{optimizer}, cache {policy}: same bytes" for optimizer, policy in trained]
    assert sorted(done.stdout.splitlines()) == sorted(expected)


@pytest.mark.exhaustive
def test_the_benchmarks_are_skipped_by_name_without_a_gpu(tmp_path: Path) -> None:
    # Asked in a process of its own: in this one the kernels may be emulated.
    folders = ("bench/gpu", "bench/contenders", "tools")
    ask = f"import sys; sys.path[:0] = {[str(ROOT / folder) for folder in folders]}"
    ask = f"{ask}; import gpu_workloads; print(gpu_workloads.missing())"
    reason = subprocess.check_output([sys.executable, "-c", ask], cwd=tmp_path, text=True)
    if reason == "None\n":
        pytest.skip("there is a GPU")
    # pytest-benchmark would take this pytest's workers for its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", str(ROOT / "bench/test_gpu.py")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" not in done.stdout
    assert "SKIPPED" in done.stdout
    assert "gpu: " in done.stdout
