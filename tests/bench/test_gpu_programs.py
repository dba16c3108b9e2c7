"""The programs of bench/gpu.sh run, with small sizes, on whatever device the tests have."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compilers
import gpu_counters
import gpu_figures
import gpu_install
import gpu_kernels
import gpu_outcomes
import programs
import pytest
from folders import ROOT, environment

from mpembed import registry

GPU = ROOT / "bench" / "gpu"
# A program in a process of its own, whose kernels may be emulated.
PROGRAM = """
import runpy, sys
import cuda_backend
assert cuda_backend.missing() is None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder: Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    """Return the figures of a program."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    figures = folder / "figures.jsonl"
    variables = {"MPEMBED_GPU_SMALLER": "8000", "OMP_NUM_THREADS": "1"}
    variables |= {"MPEMBED_GPU_FIGURES": str(figures)}
    variables["PYTHONPATH"] = os.pathsep.join((environment()["PYTHONPATH"], str(GPU)))
    done = programs.call(folder, program, GPU / f"{name}.py", *arguments, timeout=300, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return gpu_figures.lines(figures)


@pytest.mark.gpu
def test_the_step_of_a_dlrm(cuda: str, tmp_path: Path) -> None:
    small = ("--tables=2", "--dim=8", "--lookups=2", "--steps=2", "--placement=host", "--cached")
    found = run(tmp_path, "gpu_dlrm", *small)
    eager = [line for line in found if line.get("mode") == "eager"]
    assert [line["setting"] for line in eager] == ["int8 + 5% lru", "int4 + 1% lfu"]
    assert all(min(line["seconds"]) > 0 for line in eager)
    graphs = [line for line in found if line.get("mode") == "graph"]
    assert [line["nodes"] > 10 for line in graphs] == [True, True] or "knows none" in str(found)


@pytest.mark.gpu
def test_the_prefetch_beside_other_work(cuda: str, tmp_path: Path) -> None:
    found = run(tmp_path, "gpu_prefetch", "--dim=8", "--steps=2", "--beside=copy")
    assert [line["title"] for line in found] == ["int8 + 5% lru, host", "int8 + 5% lru, device"]
    assert all(line["prefetch"] > 0 and line["repeats"] >= 1 for line in found)


@pytest.mark.gpu
def test_the_assumptions_hold_and_are_those_of_the_document(cuda: str, tmp_path: Path) -> None:
    found = run(tmp_path, "gpu_assumptions")
    assert all(line["holds"] is not False for line in found)
    text = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    assert [line["title"] for line in found if line["title"] not in text] == []


def test_the_training_compares_and_runs_on_the_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(GPU / "gpu_training.py"), "--short", "--device=cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    trained = itertools.product(registry.OPTIMIZERS, [*registry.POLICIES, None])
    said = "training: {}, cache {}: same bytes"
    expected = [said.format(optimizer, policy) for optimizer, policy in trained]
    assert sorted(done.stdout.splitlines()) == sorted(expected)


def test_modules_of_pytorch_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found = {line["title"]: line["holds"] for line in run(tmp_path, "gpu_torch", "--device=cpu")}
    assert found == {
        "a module trains as on the CPU": True,
        "per-sample weights get their gradient": True,
        "calls follow PyTorch's current stream": None,
        "PyTorch captures a step in a graph": None,
        "a converted model trains": True,
    }


@pytest.mark.exhaustive
@pytest.mark.skipif(compilers.NVCC is None, reason="nvcc is not installed")
def test_the_program_of_costs_is_compiled(tmp_path: Path) -> None:
    source = GPU / "gpu_costs.cu"
    flags = ["-std=c++17", "-Werror", "all-warnings", "-c"]
    compilers.run([compilers.NVCC, *flags, source, "-o", tmp_path / "costs.o"])


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
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", str(ROOT / "bench/test_gpu.py")],
        env=variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" not in done.stdout
    assert "SKIPPED" in done.stdout
    assert "gpu: " in done.stdout


@pytest.mark.parametrize(
    ("runs", "builds", "wheel"),
    [
        ([True], False, "mpembed-1-cp312.whl runs"),
        ([False, True], True, "mpembed-2-built.whl was built"),
        ([False, False], True, "nothing runs"),
    ],
)
def test_a_carried_wheel_or_a_build(
    runs: list[bool], builds: bool, wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried, site, made = (tmp_path / name for name in ("wheels", "site", "made"))
    carried.mkdir()
    for name in ("mpembed-1-cp312.whl", "setuptools-80.whl"):
        (carried / name).touch()
    built: list[Path] = []

    def build(folder: Path) -> Path:
        built.append(folder / "mpembed-2-built.whl")
        return built[0]

    installed: list[str] = []

    def install(wheel: Path, site: Path) -> bool:
        installed.append(wheel.name)
        return True

    monkeypatch.setattr(gpu_install, "install", install)
    monkeypatch.setattr(gpu_install, "runs", lambda: runs.pop(0))
    monkeypatch.setattr(gpu_install, "build", build)
    monkeypatch.setattr(gpu_install, "call", lambda *_: True)
    monkeypatch.setattr(sys, "argv", ["gpu_install", "--wheels", str(carried)])
    monkeypatch.setenv("MPEMBED_GPU_SITE", str(site))
    monkeypatch.setenv("MPEMBED_GPU_MADE", str(made))
    monkeypatch.setenv("MPEMBED_GPU_FIGURES", str(tmp_path / "figures.jsonl"))
    assert gpu_install.main() == (wheel == "nothing runs")
    assert bool(built) == builds
    assert installed[:2] == ["setuptools-80.whl", "mpembed-1-cp312.whl"]
    assert gpu_figures.lines(tmp_path / "figures.jsonl")[-1]["text"] == wheel


def test_what_the_build_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"setuptools": "65.5.0", "numpy": "2.4.6"}

    def version(name: str) -> str:
        if name not in have:
            raise metadata.PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(metadata, "version", version)
    assert gpu_install.unmet() == ["setuptools>=77", "cython>=3.1"]


def test_a_table_of_kernels() -> None:
    def event(key: str, count: int, microseconds: float, kind: str = "CUDA") -> Any:
        device = SimpleNamespace(name=kind)
        time = {"self_device_time_total": microseconds}
        return SimpleNamespace(key=key, count=count, device_type=device, **time)

    name = "void mpembed::cuda::(anonymous namespace)::bags_kernel<mpembed::Int8, 8>(args const*)"
    events = [event("Memset (Device)", 2, 10.0), event("cudaLaunchKernel", 9, 50.0, "CPU")]
    found = gpu_kernels.table([*events, event(name, 4, 80.0)])
    assert [(kernel, count) for kernel, count, _ in found] == [
        ("bags_kernel<Int8, 8>", 4),
        ("Memset (Device)", 2),
    ]
    assert [seconds for _, _, seconds in found] == pytest.approx([80e-6, 10e-6])
    assert [line.split() for line in gpu_kernels.text(found, 2, most=1).splitlines()] == [
        ["40.0", "us", "2.0", "x", "bags_kernel<Int8,", "8>"],
        ["5.0", "us", "1", "others"],
    ]


def test_the_counters_of_ncu() -> None:
    heads = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    lines = [
        "==PROF== words before the table",
        heads,
        '"0","update_kernel(args)","Duration","us","12.5"',
        '"0","update_kernel(args)","Something else","","1"',
        '"1","update_kernel(args)","L2 Hit Rate","%","40"',
    ]
    assert gpu_counters.rows("\n".join(lines)) == [
        ("update_kernel", "Duration 12.5 us"),
        ("update_kernel", "L2 Hit Rate 40 %"),
    ]
    assert gpu_counters.rows("no report") == []


def test_outcomes_are_kept_at_once(tmp_path: Path) -> None:
    test = tmp_path / "test_some.py"
    test.write_text(
        textwrap.dedent("""
        import os, signal, pytest
        def test_good(): pass
        def test_bad(): assert 1 == 2
        def test_none(): pytest.skip("gpu: there is none")
        def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    kept = tmp_path / "tests.jsonl"
    variables = {"MPEMBED_GPU_TESTS": str(kept), "MPEMBED_GPU_PART": "tests"}
    variables |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(GPU)}
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", gpu_outcomes.__name__, str(test)]
    subprocess.run(command, env={**outside, **variables}, cwd=tmp_path, capture_output=True)
    found = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["outcome"] for line in found] == ["passed", "failed", "skipped"]
    assert "assert 1 == 2" in found[1]["why"]
    assert found[2]["why"] == "gpu: there is none"
