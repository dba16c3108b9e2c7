"""The whole step: each kernel's time a row times its rows in a batch, and what the host does.

A kernel that works on rows of several kinds, such as cached and stored ones, takes the largest of
the sums of its bytes, instructions and waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mpembed_gpu import calls, cubins, registry, report, scenarios, traffic, workload
from mpembed_gpu.devices import MEASURED, Device
from mpembed_gpu.evaluate import Evaluation
from mpembed_gpu.model import STRIDE, Estimate, estimate
from mpembed_gpu.registry import Format, Optimizer
from mpembed_gpu.workload import DIM, LOOKUPS, SETS_OF_WARP, SETTINGS, Counts, Setting

DEVICES = sorted(MEASURED, key=lambda device: ("H100", "H200", "A100").index(device.name))
OUTPUTS = {"FP32": 4, "BF16": 2}  # bytes of an element of outputs and gradients
GAP = 1.0e-6  # seconds from the end of a kernel to the start of the next one
LAUNCH, CALL = 2.0e-6, 0.15e-6  # the host's seconds for a launch, a fill or a copy, and any other
PARTS = ("prepare", "dedup", "find", "admit", "rows", "scatter", "forward", "update", "launches")
_FAMILIES = ("prepare", "cache", "lookup", "update_short")
_ARCHITECTURES = ("80", "90")
_FORMATS = {fmt.name: fmt for fmt in registry.FORMATS}
_POLICIES = {policy.name: policy for policy in registry.POLICIES}
OPTIMIZERS = tuple(o for o in registry.OPTIMIZERS if o.name in ("rowwise_adagrad", "sgd"))
_COPY = re.compile(r"cudaMem(cpy|set)\w*|cudaLaunchKernel\w*")
_AT_MOST = 4  # gradients of a row with more than 64 lookups that are in flight
_TIMES = ("issue", "latency")
_SCAN = {"alu": 12.0, "lsu": 2.0}  # a warp's instructions for a miss of its lists, or eight


@dataclass(frozen=True)
class Case:
    """One column of the page's tables."""

    setting: str
    pool: int
    optimizer: str
    outputs: str
    device: str


Parts = Mapping[str, float]  # seconds
Bounds = Mapping[str, str]  # what bounds each part's longest kernel
Work = Sequence[tuple[float, Estimate]]  # of a kernel: rows, and what each takes


def cases() -> list[Case]:
    """Return all cases, in the page's order."""
    return [
        Case(setting.name, pool, optimizer.name, outputs, device.name)
        for setting in SETTINGS
        for pool in LOOKUPS
        for optimizer in OPTIMIZERS
        for outputs in OUTPUTS
        for device in DEVICES
    ]


def evaluation(tools: cubins.Kernels) -> Evaluation:
    """Compile what the step needs."""
    kernels = report.all_kernels(tools, _ARCHITECTURES, _FAMILIES)
    formats = [_FORMATS[name] for name in sorted({s.precision for s in SETTINGS} | {"fp32"})]
    known = (*scenarios.SCENARIOS, *scenarios.BATCH)
    needed = [one for one in known if one.family in _FAMILIES]
    return Evaluation(tools, kernels, needed, formats)


class Step:
    """The times of the kernels of a batch."""

    def __init__(
        self,
        kernels: Evaluation,
        counts: Mapping[tuple[str, int], Counts],
        counted: Mapping[tuple[str, int], calls.Calls],
    ) -> None:
        self.kernels, self.counts, self.calls = kernels, counts, counted
        self.estimate = lru_cache(maxsize=None)(self._estimate)

    def _estimate(self, key: str, device: Device, fmt: Format, *how: object) -> Estimate:
        found = getattr(scenarios, key)
        made = found(*how) if callable(found) else found
        return self.kernels.estimate(made, fmt, DIM, device)

    def parts(self, case: Case) -> tuple[dict[str, float], dict[str, str]]:
        """Return the seconds of each part of a step, and what bounds it."""
        setting = next(one for one in SETTINGS if one.name == case.setting)
        device = next(one for one in DEVICES if one.name == case.device)
        optimizer = next(one for one in OPTIMIZERS if one.name == case.optimizer)
        batch = _Batch(self, setting, case.pool, OUTPUTS[case.outputs], optimizer, device)
        launches = self.calls[setting.policy, case.pool]
        seconds: dict[str, float] = {}
        bounds: dict[str, str] = {}
        for name in PARTS[:-1]:
            kernels: list[Work] = getattr(batch, f"{name}_kernels")()
            found = [together(work) for work in kernels]
            seconds[name] = sum(one.seconds for one in found)
            bounds[name] = max(found, key=lambda one: one.seconds).bound
        return {**seconds, "launches": (launches.launches + launches.fills) * GAP}, bounds


def at_once(optimizer: Optimizer) -> int:
    """Return the gradients of a row with 2 to 64 lookups in flight, as update_tile.cuh has them."""
    if sum(one.element for one in optimizer.states) > 1:
        return _AT_MOST
    return 1 if optimizer.states else 2


def _more(two: Estimate, one: Estimate) -> Estimate:
    """Return what one path takes more than another, apart from bytes."""
    return Estimate(0, {name: two.parts[name] - one.parts[name] for name in _TIMES})


def together(work: Work) -> Estimate:
    """Return what a kernel takes for rows of several kinds."""
    total: dict[str, float] = {}
    for rows, one in work:
        for bound, seconds in one.parts.items():
            total[bound] = total.get(bound, 0) + rows * seconds
    return Estimate(sum(rows * one.floor for rows, one in work), total)


@dataclass(frozen=True)
class _Batch:
    """The work of each part, in one case."""

    step: Step
    setting: Setting
    pool: int
    value: int
    optimizer: Optimizer
    device: Device

    @property
    def counts(self) -> Counts:
        return self.step.counts[self.setting.name, self.pool]

    @property
    def stored(self) -> Format:
        return _FORMATS[self.setting.precision]

    def row(self, key: str, *how: object, fmt: Format | None = None) -> Estimate:
        return self.step.estimate(key, self.device, fmt or self.stored, *how)

    def bytes(self, moved: traffic.Bytes) -> Estimate:
        return estimate(self.device, moved)

    # ---- each part's kernels -----------------------------------------------------------------

    def prepare_kernels(self) -> list[Work]:
        bags = self.counts.lookups / self.pool
        return [[(self.counts.lookups, self.row("prepare", self.pool)), (bags, self.row("bags"))]]

    def dedup_kernels(self) -> list[Work]:
        return [[(self.counts.lookups, self.row("DEDUP"))]]

    def find_kernels(self) -> list[Work]:
        return [[(self.counts.unique, self.row("find", _POLICIES[self.setting.policy]))]]

    def admit_kernels(self) -> list[Work]:
        """Return the ways of misses, four sets a warp at once, and their counts in the sketch."""
        counts, device = self.counts, self.device
        policy = _POLICIES[self.setting.policy]
        one, two = (self.row("choose", policy, ways) for ways in (1, 2))
        sets, left = counts.missed_sets, counts.misses - counts.admitted
        warps = device.processors * self._warps("cache", f"admit_kernel<{policy.type}>")
        # A set's tags are read once for all of its misses.
        state = self.bytes(traffic.tags()).parts
        way = {bound: one.parts[bound] - seconds for bound, seconds in state.items()}
        # Its list is walked miss by miss: once, or twice where its lanes cannot hold it. Then each
        # round goes through the list, which the L1 cache has.
        walks = 1 if counts.misses <= scenarios.SET_LANES * sets else 2
        chunks = max(1.0, counts.misses / sets / scenarios.SET_LANES)
        scan = self._work(_SCAN, device.near * _SCAN["lsu"], warps)
        work: Work = [
            (sets, Estimate(0, state)),
            (counts.admitted, Estimate(one.floor, way)),
            (left, self.bytes(traffic.miss())),
            (sets, Estimate(0, {name: one.parts[name] for name in _TIMES})),
            (SETS_OF_WARP * counts.rounds - sets, _more(two, one)),
            (
                walks * (counts.misses - sets) / SETS_OF_WARP,
                self._work(_SCAN, device.cached, warps),
            ),
            (counts.rounds * (chunks - 1), scan),
        ]
        if left:
            counted = _more(self.row("choose", policy, 1, 1), one)
            work = [*work, (sets * chunks, counted), (counts.misses, self.bytes(traffic.miss()))]
        if policy.name == "lfu":
            return [work, [(counts.misses, self.bytes(traffic.sketch()))]]
        return [work]

    def _work(self, units: Mapping[str, float], waits: float, warps: float) -> Estimate:
        """Return what a few instructions of a warp take, with what it waits for."""
        alone = waits + sum(units.values()) * STRIDE / self.device.clock
        return Estimate(0, {"issue": self.device.issue(units), "latency": alone / warps})

    def rows_kernels(self) -> list[Work]:
        return [[(self.counts.admitted, self.row("move", self.optimizer))]]

    def scatter_kernels(self) -> list[Work]:
        return [[(self.counts.lookups, self.row("SCATTER"))]]

    def forward_kernels(self) -> list[Work]:
        counts, fp32 = self.counts, _FORMATS["fp32"]
        # What was admitted just now is read in the tables.
        stored = counts.lookups - counts.hit_lookups
        hot = counts.many_lookups - counts.hit_many_lookups
        cached, cached_hot = counts.hit_lookups, counts.hit_many_lookups
        work: list[tuple[float, Estimate]] = []
        for fmt, lookups, near in ((self.stored, stored, hot), (fp32, cached, cached_hot)):
            one = self.row("forward", self.pool, self.value, fmt=fmt)
            work += [(lookups - near, one), (near, self._near(one, fmt))]
        return [work]

    def _near(self, one: Estimate, fmt: Format) -> Estimate:
        """Return a lookup of a row that the L2 cache has."""
        moved = traffic.forward(fmt, DIM, self.pool, self.value)
        memory = moved.memory - traffic.sectors(fmt.row(DIM))
        return replace(one, parts={**one.parts, "memory": memory / self.device.memory})

    def update_kernels(self) -> list[Work]:
        counts, fp32 = self.counts, _FORMATS["fp32"]
        how = (self.optimizer, self.pool, self.value)
        few, repeated = counts.few_lookups - counts.few, counts.lookups - counts.unique
        more = self.row("occurrences", self.pool, self.value)
        # Of a row with few lookups fewer gradients are in flight, so a tile waits more often.
        warps = self._warps("update_short", f"update_kernel<{self.optimizer.type}, false>")
        tiles = self.device.processors * warps * 32 / scenarios.lanes(DIM)
        wait = self.device.far if self.pool == 1 else self.device.cached
        waits = max(0.0, 1 / at_once(self.optimizer) - 1 / _AT_MOST) * wait / tiles
        slow = {**more.parts, "latency": more.parts["latency"] + waits}
        return [
            [
                (counts.unique, self.bytes(traffic.found())),
                (counts.unique - counts.cached, self.row("update", *how)),
                (counts.hits, self.row("update", *how, fmt=fp32)),
                (counts.admitted, self._update_of_admitted()),
                (repeated - few, more),
                (few, replace(more, parts=slow)),
            ]
        ]

    def _update_of_admitted(self) -> Estimate:
        """Return the update of a row that is read in its table and written to its slot."""
        fp32 = _FORMATS["fp32"]
        how = (self.optimizer, self.pool, self.value)
        cached = self.row("update", *how, fmt=fp32)
        read = traffic.record(self.stored, DIM, self.optimizer)
        less = traffic.record(fp32, DIM, self.optimizer) - read
        # Decoding costs what it costs a lookup more than that of an FP32 row.
        decoded, plain = (
            self.row("forward", self.pool, self.value, fmt=fmt) for fmt in (self.stored, fp32)
        )
        parts = {
            "memory": cached.parts["memory"] - less / self.device.memory,
            "L2": cached.parts["L2"] - less / self.device.l2,
            **{
                name: cached.parts[name] + max(0.0, decoded.parts[name] - plain.parts[name])
                for name in ("issue", "latency")
            },
        }
        return replace(cached, parts=parts)

    def _warps(self, family: str, kernel: str) -> int:
        return self.step.kernels.kernels[family, self.device.arch, kernel].warps


def host(counted: calls.Calls) -> float:
    """Return the host's seconds for the runtime's calls of a step."""
    long = counted.count(_COPY)
    return long * LAUNCH + (counted.all - long) * CALL


def save(path: Path, found: Mapping[Case, Parts], commit: str, date: str) -> None:
    """Keep a step's figures, to compare later ones with."""
    head = json.dumps({"commit": commit, "date": date})[1:-1]
    lines = [
        json.dumps([*vars(case).values(), {name: float(f"{s:.6g}") for name, s in parts.items()}])
        for case, parts in found.items()
    ]
    path.write_text(f'{{{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")


def load(path: Path) -> tuple[str, str, dict[Case, Parts]]:
    """Return commit, date and figures of a file."""
    data = json.loads(path.read_text())
    return data["commit"], data["date"], {Case(*one[:-1]): one[-1] for one in data["cases"]}


DATA = Path(__file__).with_name("data")
WORKLOAD, CALLS = DATA / "workload.json", DATA / "calls.json"
CALLS_BEFORE, STEP_BEFORE = DATA / "calls_before.json", DATA / "step_before.json"


def measure(kernels: Evaluation) -> tuple[dict[Case, Parts], dict[Case, Bounds]]:
    """Return the seconds of every case, and what bounds them."""
    step = Step(kernels, workload.read(WORKLOAD), calls.read(CALLS))
    found = {case: step.parts(case) for case in cases()}
    return {c: one[0] for c, one in found.items()}, {c: one[1] for c, one in found.items()}
