"""The whole step of docs/gpu_model.md: its parts, its page, and the kept figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mpembed_gpu import calls, page, registry, report, scenarios, step, step_page, traffic, workload
from mpembed_gpu.calls import Calls
from mpembed_gpu.devices import Device
from mpembed_gpu.model import Estimate, estimate
from mpembed_gpu.scenarios import Scenario
from mpembed_gpu.step import Case, Step
from mpembed_gpu.workload import LOOKUPS, SETTINGS, Counts

COUNTED = Calls({"cudaLaunchKernel": 30, "cudaMemsetAsync": 10, "cudaEventRecord": 20}, {})
CASE = Case("int8, 5 % LRU", 20, "rowwise_adagrad", "FP32", "H100")


@dataclass(frozen=True)
class Resident:
    warps: int


class Kernels:
    """Scenarios by their bytes alone."""

    def __init__(self) -> None:
        names = [f"update_kernel<{optimizer.type}, false>" for optimizer in registry.OPTIMIZERS]
        names += [f"admit_kernel<{policy.type}>" for policy in registry.POLICIES]
        self.kernels = {
            (family, arch, name): Resident(24)
            for family in ("update_short", "cache")
            for arch in ("80", "90")
            for name in names
        }

    def estimate(self, scenario: Scenario, fmt: Any, dim: int, device: Device) -> Estimate:
        made = estimate(device, scenario.bytes(fmt, dim))
        return Estimate(made.floor, {**made.parts, "issue": 0.0, "latency": 0.0})


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Counts]:
    monkeypatch.chdir(Path(__file__).parents[2])
    return workload.read(step.WORKLOAD)


def make(counts: dict[tuple[str, int], Counts]) -> Step:
    kernels: Any = Kernels()
    return Step(kernels, counts, {(s.policy, n): COUNTED for s in SETTINGS for n in LOOKUPS})


def test_every_case_has_every_part(counts: dict[tuple[str, int], Counts]) -> None:
    made = make(counts)
    assert len(step.cases()) == len(set(step.cases())) == 2 * 2 * 2 * 2 * 3
    for case in step.cases():
        parts, bounds = made.parts(case)
        assert (*bounds, "launches") == tuple(parts) == step.PARTS
        assert set(bounds.values()) <= {"memory", "L2", "latency"}
        assert all(seconds > 0 for seconds in parts.values())


def test_what_the_parts_depend_on(counts: dict[tuple[str, int], Counts]) -> None:
    made = make(counts)

    def parts(case: Case) -> dict[str, float]:
        return made.parts(case)[0]

    here = parts(CASE)

    def faster(**changes: str) -> set[str]:
        other = parts(Case(**{**vars(CASE), **changes}))
        assert all(other[name] <= here[name] for name in step.PARTS)
        return {name for name in step.PARTS if other[name] < here[name]}

    assert faster(outputs="BF16") == {"forward", "update"}
    assert faster(optimizer="sgd") == {"rows", "update"}
    assert faster(device="H200") == set(step.PARTS) - {"launches"} - by_l2(parts, here)


def by_l2(parts: Any, here: dict[str, float]) -> set[str]:
    """Return the parts that another memory leaves as they are: those of the L2 cache."""
    other = parts(Case(**{**vars(CASE), "device": "H200"}))
    return {name for name in step.PARTS[:-1] if other[name] == here[name]}


def test_what_was_just_admitted_is_read_in_its_table(
    counts: dict[tuple[str, int], Counts],
) -> None:
    """As many hits more are as many rows of 512 bytes, instead of those of 136 for INT8."""
    key = CASE.setting, CASE.pool
    (sgd,) = (one for one in step.OPTIMIZERS if one.name == "sgd")
    device = next(one for one in step.DEVICES if one.name == CASE.device)
    was = counts[key]
    hits = replace(was, hits=was.hits + was.admitted, admitted=0, hit_lookups=was.cached_lookups)
    batches = [
        step._Batch(make({**counts, key: one}), SETTINGS[0], CASE.pool, 4, sgd, device)
        for one in (was, hits)
    ]
    for part in ("forward", "update"):
        less, more = (step.together(getattr(one, f"{part}_kernels")()[0]) for one in batches)
        assert less.parts["memory"] < more.parts["memory"]
        assert less.parts["L2"] < more.parts["L2"]
    moved = [step.together(one.update_kernels()[0]).parts["memory"] for one in batches]
    less_bytes = was.admitted * (512 - traffic.sectors(136))
    assert (moved[1] - moved[0]) * device.memory == pytest.approx(less_bytes)


def test_a_kernel_takes_the_largest_sum() -> None:
    """Not the sum of what is largest for each kind of row."""
    memory, issue = Estimate(0, {"memory": 3.0, "issue": 1.0}), Estimate(0, {"issue": 2.0})
    for rows, seconds, bound in ((4, 10.0, "issue"), (1, 6.0, "memory")):
        found = step.together([(2, memory), (rows, issue)])
        assert (found.seconds, found.bound) == (seconds, bound)


def test_the_hosts_time() -> None:
    assert step.host(COUNTED) == pytest.approx(40 * step.LAUNCH + 20 * step.CALL)
    assert step_page.seconds({"all": 1e-6}, COUNTED) == step.host(COUNTED)
    assert step_page.seconds({"all": 1.0}, COUNTED) == 1.0


def test_bags_of_one_move_more_for_each_lookup() -> None:
    fmt, optimizer = registry.FORMATS[0], registry.OPTIMIZERS[0]
    for value in step.OUTPUTS.values():
        one, many = (traffic.forward(fmt, 128, pool, value).memory for pool in LOOKUPS)
        assert one - many == pytest.approx((value * 128 + 8) * (1 - 1 / 20))
        one, many = (traffic.update(fmt, 128, optimizer, n, value).memory for n in LOOKUPS)
        assert one - many == pytest.approx(value * 128 * (1 - 1 / 20))
        assert scenarios.forward(1, value).rows(128) == 2 * 16  # bags of a warp
        assert scenarios.forward(20, value).rows(128) == 2 * 4 * 20


def test_figures_are_kept(tmp_path: Path) -> None:
    found = {CASE: {"prepare": 0.25, "launches": 1e-6}}
    step.save(tmp_path / "step.json", found, "abc", "2026-11-30")
    assert step.load(tmp_path / "step.json") == ("abc", "2026-11-30", found)


def test_the_kept_figures_are_of_all_cases() -> None:
    _, _, before = step.load(step.STEP_BEFORE)
    assert list(before) == step.cases()
    batches = {(policy, n) for policy in ("none", "lru", "lfu") for n in LOOKUPS}
    assert set(calls.read(step.CALLS)) == set(calls.read(step.CALLS_BEFORE)) == batches


def test_the_tables_fill_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, before = step.load(step.STEP_BEFORE)
    half = {case: {name: s / 2 for name, s in parts.items()} for case, parts in before.items()}
    bounds: dict[Case, dict[str, str]] = {case: {"find": "memory"} for case in before}
    made = step_page.tables(half, bounds)
    text = (Path(__file__).parents[2] / page.PAGE).read_text()
    assert page.fill(text, made, "13.0").count("<!-- end -->") == text.count("<!-- end -->")
    lines = made["step: times"].splitlines()
    assert len(lines) == 2 + len(step.cases()) // 3
    fp32 = [line for line in lines if "| FP32 |" in line]
    assert re.findall(r"\((\S+)x\)", "".join(fp32)) == ["2.00"] * 3 * len(fp32)
    finds = [line for line in made["step: parts"].splitlines() if line.startswith("| find |")]
    assert len(finds) == 4
    assert all(line.count(" → ") == line.count(" memory |") == 3 for line in finds)
    same = step_page.tables(before, bounds)
    assert " → " not in same["step: parts"]


def test_the_model_has_the_numbers_of_the_kernels() -> None:
    kernels = Path(__file__).parents[2] / "kernels" / "cuda"
    words = " ".join((kernels / "update_tile.cuh").read_text().split())
    states = "Optimizer::kNumStates == 0 ? 2 : 1"
    assert f"kLong ? 1 : blocks_of<Optimizer, kLong>() == 2 ? 4 : {states}" in words
    assert "return kLong || kElementStates<Optimizer> > 1 ? 2 : 3;" in words
    found = {optimizer.name: step.at_once(optimizer) for optimizer in registry.OPTIMIZERS}
    assert (found["sgd"], found["rowwise_adagrad"], found["adam"]) == (2, 1, 4)
    source = (kernels / "lookup.cu").read_text()
    assert "constexpr int64_t kLookups = 128, kWarps" in source
    assert "int32_t run = 16;" in source
    assert f"constexpr int kBagThreads = {report._BAG_THREADS};" in source
