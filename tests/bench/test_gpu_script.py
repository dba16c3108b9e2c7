"""bench/gpu.sh and what runs its parts, with stand-ins for all that needs a GPU or is slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import gpu_parts
import gpu_report
import gpu_visit
import pytest
from folders import ROOT

FIRST = ["device", "install", "assumptions", "training", "torch", "costs", "dlrm", "kernels"]
FIRST += ["host", "prefetch", "benchmarks", "graphs", "tests", "memcheck", "synccheck"]
ALL = ["device", "build", "assumptions", "tests", "training", "torch", "memcheck", "racecheck"]
ALL += ["initcheck", "synccheck", "benchmarks", "costs", "dlrm", "kernels", "host", "prefetch"]
MOST_FILES = 8

# Stands in for Python: logs the call, keeps figures and outcomes as the programs would.
PYTHON = """#!/bin/bash
case "$*" in *gpu_visit.py*) exec "$REAL" "$@" ;; esac
echo "$MPEMBED_CUDA_ARCHS $MPEMBED_TEST_CUDA $PYTEST_DISABLE_PLUGIN_AUTOLOAD $*" >>"$CALLS"
echo "$MPEMBED_GPU_PART begins"
echo '{"kind": "figure", "text": "of '"$MPEMBED_GPU_PART"'"}' >>"$MPEMBED_GPU_FIGURES"
if [[ $MPEMBED_GPU_PART == graphs ]]; then cat "$STUBS/tests.jsonl" >>"$MPEMBED_GPU_TESTS"; fi
if [[ $MPEMBED_GPU_PART == benchmarks ]]; then cat "$STUBS/timed.jsonl" >>"$MPEMBED_GPU_FIGURES"; fi
if [[ $MPEMBED_GPU_PART == "$HANG" ]]; then sleep 60 & wait; fi
if [[ $MPEMBED_GPU_PART == "$FAIL" ]]; then exit 3; fi
"""
NVIDIA_SMI = """#!/bin/bash
echo 9.0
"""
SANITIZER = """#!/bin/bash
echo "sanitizer $*" >>"$CALLS"
exec "${@:4}"
"""
TESTS = [
    {"test": "test_a::good", "outcome": "passed", "why": ""},
    {"test": "test_a::bad", "outcome": "failed", "why": "it was wrong"},
    {"test": "test_a::none", "outcome": "skipped", "why": "gpu: there is none"},
]
TIMED = [
    {"name": "test_forward[int4]", "device_seconds": 0.001, "floor_seconds": 0.0005},
    {"name": "test_forward_torch", "device_seconds": 0.0005, "floor_seconds": None},
]


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    folder = tmp_path / "stubs"
    folder.mkdir()
    programs = {"python": PYTHON, "nvidia-smi": NVIDIA_SMI, "compute-sanitizer": SANITIZER}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    same = {"kind": "benchmark", "text": "", "group": "gpu", "rows": 1000, "host_seconds": 0.002}
    (folder / "tests.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in TESTS))
    (folder / "timed.jsonl").write_text(
        "".join(f"{json.dumps({**same, **line})}\n" for line in TIMED)
    )
    return folder


def start(stubs: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{stubs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHON": str(stubs / "python"),
        "STUBS": str(stubs),
        "CALLS": str(stubs / "calls"),
        "REAL": sys.executable,
        **variables,
    }
    command = ["bash", str(ROOT / "bench/gpu.sh"), "--out", str(stubs.parent / "out"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(stubs: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Return the exit status and what was printed."""
    process = start(stubs, *arguments, **variables)
    printed = "".join(process.communicate(timeout=120))
    return process.returncode, printed


def results(stubs: Path) -> dict[str, Any]:
    return dict(json.loads((stubs.parent / "out/results.json").read_text()))


def statuses(stubs: Path) -> dict[str, int | str]:
    return {part["part"]: part["status"] for part in results(stubs)["parts"]}


@pytest.mark.parametrize(("option", "parts"), [(["--first"], FIRST), ([], ALL)])
def test_every_part_runs_and_is_reported(stubs: Path, option: list[str], parts: list[str]) -> None:
    status, printed = run(stubs, *option)
    assert status == 0, printed
    assert statuses(stubs) == dict.fromkeys(parts, 0)
    out = stubs.parent / "out"
    assert len(list(out.iterdir())) <= MOST_FILES
    assert (out / "results.txt").read_text() in printed
    assert {figure["text"] for figure in results(stubs)["figures"]} >= {"of costs", "of dlrm"}
    with tarfile.open(out / "archive.tar.gz") as packed:
        assert {"log.txt", "results.json", "figures.jsonl"} <= set(packed.getnames())
    calls = (stubs / "calls").read_text().splitlines()
    plugins = "1" if option else ""
    ours = [call for call in calls if not call.startswith("sanitizer")]
    assert all(call.startswith(f"90 installed {plugins} ") for call in ours)
    tools = [call.split()[1] for call in calls if call.startswith("sanitizer")]
    assert tools == [f"--tool={part}" for part in parts if part.endswith("check")]


def test_the_report_has_tests_and_times(stubs: Path) -> None:
    run(stubs, "--first")
    found = results(stubs)
    assert found["tests"] == {
        "passed": 1,
        "skipped": 1,
        "skipped_for_want_of_a_gpu": 1,
        "failed": [{"test": "test_a::bad", "why": "it was wrong"}],
    }
    torch, int4 = found["benchmarks"]
    assert torch["times_the_floor"] is None
    assert int4["times_the_floor"] == pytest.approx(2)
    assert int4["rows_per_second"] == pytest.approx(1e6)
    text = (stubs.parent / "out/results.txt").read_text()
    assert "test_a::bad\n    ... it was wrong" in text
    assert "test_forward[int4]" in text


def test_what_fails_is_noted_and_the_rest_goes_on(stubs: Path) -> None:
    status, _ = run(stubs, "--first", FAIL="costs")
    assert status == 1
    assert statuses(stubs) == {**dict.fromkeys(FIRST, 0), "costs": 3}
    assert "FAILED 3" in (stubs.parent / "out/results.txt").read_text()


def test_a_part_at_its_limit_loses_nothing(stubs: Path) -> None:
    status, _ = run(stubs, "--first", "--minutes=0.15", HANG="assumptions")
    assert status == 1
    found = statuses(stubs)
    assert list(found.values()) == [0, 0, "limit", *["no time left"] * (len(FIRST) - 3)]
    with tarfile.open(stubs.parent / "out/archive.tar.gz") as packed:
        log = packed.extractfile("log.txt")
        assert log is not None
        assert b"assumptions begins" in log.read()
    assert {"kind": "figure", "text": "of assumptions"} in results(stubs)["figures"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_a_loan_loses_nothing(stubs: Path, number: int) -> None:
    out = stubs.parent / "out"
    process = start(stubs, "--first", HANG="training")
    until = time.monotonic() + 60
    while not (out / "log.txt").exists() or "training begins" not in (out / "log.txt").read_text():
        assert time.monotonic() < until, process.poll()
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert statuses(stubs) == dict.fromkeys(FIRST[:3], 0)
    assert "of assumptions" in (out / "results.txt").read_text()
    assert "of training" in (out / "figures.jsonl").read_text()
    assert (out / "archive.tar.gz").exists() == (number == signal.SIGTERM)


def test_after_a_limit_the_next_part_runs_and_nothing_is_left_behind(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    slow = f"trap '' INT; echo begins; (trap '' INT; sleep 5; touch {marker}) & sleep 60"
    parts = gpu_parts.Parts(tmp_path, dict(os.environ), None)
    start = time.monotonic()
    parts.run_all(
        [
            gpu_parts.Part("slow", 1, ["bash", "-c", slow]),
            gpu_parts.Part("absent", 1, [str(tmp_path / "none")]),
            gpu_parts.Part("loud", 60, ["bash", "-c", "yes | head -c 3000000; echo last"]),
        ]
    )
    found = [part["status"] for part in gpu_report.collect(tmp_path)["parts"]]
    assert found == ["limit", "cannot be started", 0]
    log = (tmp_path / "log.txt").read_text()
    assert "begins" in log
    assert log.rstrip().splitlines()[-2] == "last"
    assert len(log) < 2 * gpu_parts.MOST_TEXT
    time.sleep(max(0.0, start + 6 - time.monotonic()))
    assert not marker.exists()


def test_the_limits_of_a_first_visit_fit_into_its_time() -> None:
    parts = gpu_visit.first("wheels")
    seconds = (gpu_visit.MINUTES["first"] or 0) * 60
    assert sum(part.limit for part in parts) + gpu_parts.RESERVE <= seconds
    runs = gpu_parts.Parts(Path(), {}, seconds)
    later = sum(part.limit for part in parts[1:])
    assert runs.share(parts[0], later) == pytest.approx(parts[0].limit, abs=1)
    # Of what those before it left, a part gets some; what all need, whatever there is.
    assert runs.share(parts[0], 0) == parts[0].limit * parts[0].stretch
    assert [part.name for part in parts if part.vital] == ["install"]
    assert runs.share(parts[1], later) == parts[1].limit * parts[1].stretch


def test_the_archive_has_a_limit(tmp_path: Path) -> None:
    out, small, large = tmp_path / "out", tmp_path / "small", tmp_path / "large"
    out.mkdir()
    (out / "log.txt").write_text("log")
    small.write_bytes(os.urandom(1000))
    large.write_bytes(os.urandom(100_000))
    assert gpu_parts.archive(out, [large, small], 50_000) == ["large"]
    with tarfile.open(out / "archive.tar.gz") as packed:
        assert packed.getnames() == ["log.txt", "small"]
    assert (out / "archive.tar.gz").stat().st_size < 50_000


def test_a_second_visit_repeats_what_failed(stubs: Path) -> None:
    run(stubs, "--first", FAIL="torch")
    after = stubs.parent / "results.json"
    (stubs.parent / "out/results.json").rename(after)
    found = json.loads(after.read_text())
    found["parts"][FIRST.index("memcheck")]["status"] = "limit"
    after.write_text(json.dumps(found))
    status, printed = run(stubs, "--second", "--dry-run", "--after", str(after))
    assert status == 0
    names = [line.split(":")[0] for line in printed.splitlines()[:-1]]
    assert names[:5] == ["device", "install", "torch", "ncu", "memcheck"]
    assert names[5:] == ["rest", "racecheck", "initcheck"]


@pytest.mark.parametrize(("option", "parts"), [(["--first"], FIRST), ([], ALL)])
def test_a_dry_run_prints_and_does_nothing(
    stubs: Path, option: list[str], parts: list[str]
) -> None:
    status, printed = run(stubs, *option, "--dry-run")
    assert status == 0
    assert [line.split(":")[0] for line in printed.splitlines()[:-1]] == parts
    assert not (stubs.parent / "out").exists()
    assert not (stubs / "calls").exists()


def test_what_it_does_not_know_is_an_error(stubs: Path) -> None:
    status, printed = run(stubs, "--fast")
    assert status == 2
    assert "bash bench/gpu.sh" in printed
