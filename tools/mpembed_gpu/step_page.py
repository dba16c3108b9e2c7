"""The page's tables of the whole step, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mpembed_gpu import calls, step, workload
from mpembed_gpu.step import (
    CALLS,
    CALLS_BEFORE,
    DEVICES,
    PARTS,
    STEP_BEFORE,
    WORKLOAD,
    Bounds,
    Case,
    Parts,
)
from mpembed_gpu.workload import LOOKUPS, SETTINGS

NAMES = tuple(f"step: {name}" for name in ("before", "batch", "calls", "parts", "times"))
Counted = Mapping[tuple[str, int], calls.Calls]
_COUNTS = (
    ("lookups", "lookups"),
    ("unique rows", "unique"),
    ("hits", "hits"),
    ("misses", "misses"),
    ("admitted, each in the place of a dirty row", "admitted"),
    ("in the cache after that", "cached"),
    ("their lookups", "cached_lookups"),
    ("lookups of rows that were there before", "hit_lookups"),
    ("rows with 2 to 64 lookups", "few"),
    ("their lookups", "few_lookups"),
    ("rows with more", "many"),
    ("their lookups", "many_lookups"),
)
_CALLS = (
    ("kernels", "launches"),
    ("of these CUB's", "of_cub"),
    ("fills", "fills"),
    ("allocations and frees", "memory"),
    ("events and waits of streams", "events"),
    ("all calls of the runtime", "all"),
)


def tables(now: Mapping[Case, Parts], bounds: Mapping[Case, Bounds]) -> dict[str, str]:
    """Return all tables by the name of their block."""
    commit, date, before = step.load(STEP_BEFORE)
    counted = calls.read(CALLS_BEFORE), calls.read(CALLS)
    made = (
        f"Before is commit `{commit}` of {date}.",
        _batch(),
        _calls(*counted),
        _parts(before, now, bounds),
        _times(before, now, counted),
    )
    return dict(zip(NAMES, made, strict=True))


def _table(head: Iterable[str], lines: Iterable[Iterable[str]], left: int = 1) -> str:
    cells = list(head)
    rule = "|---" * left + "|--:" * (len(cells) - left) + "|"
    made = [f"| {' | '.join(cells)} |", rule]
    return "\n".join([*made, *(f"| {' | '.join(line)} |" for line in lines)])


def _batch() -> str:
    found = workload.read(WORKLOAD)
    columns = [(setting.name, pool) for setting in SETTINGS for pool in LOOKUPS]
    head = ["", *(f"{name}, L={pool}" for name, pool in columns)]
    return _table(
        head,
        ([title, *(f"{getattr(found[c], name):,}" for c in columns)] for title, name in _COUNTS),
    )


def _calls(
    before: Mapping[tuple[str, int], calls.Calls], now: Mapping[tuple[str, int], calls.Calls]
) -> str:
    """Return what was counted; a change is an arrow."""
    columns = sorted(now, key=lambda c: (c[0] != "none", c))
    head = ["", *(f"{_cache(policy)}, L={pool}" for policy, pool in columns)]
    lines = []
    for title, name in _CALLS:
        pairs = ((getattr(before[c], name), getattr(now[c], name)) for c in columns)
        lines.append([title, *(_change(f"{old}", f"{new}") for old, new in pairs)])
    return _table(head, lines)


def _cache(policy: str) -> str:
    return "no cache" if policy == "none" else policy.upper()


def _change(old: str, new: str) -> str:
    return new if old == new else f"{old} → {new}"


def _parts(
    before: Mapping[Case, Parts], now: Mapping[Case, Parts], bounds: Mapping[Case, Bounds]
) -> str:
    """Return the microseconds of each part, with rowwise Adagrad and outputs in FP32."""

    def cell(case: Case, *names: str) -> str:
        old, new = (sum(each[case][name] for name in names) for each in (before, now))
        bound = bounds[case].get(names[0], "") if len(names) == 1 else ""
        return f"{_change(f'{1e6 * old:,.0f}', f'{1e6 * new:,.0f}')} {bound}".rstrip()

    made = []
    for setting in SETTINGS:
        for pool in LOOKUPS:
            case = Case(setting.name, pool, "rowwise_adagrad", "FP32", "")
            columns = [replace(case, device=device.name) for device in DEVICES]
            lines = [[name, *(cell(one, name) for one in columns)] for name in PARTS]
            lines.append(["all", *(cell(one, *PARTS) for one in columns)])
            title = f"{setting.name}, L={pool}, µs"
            made.append(_table([title, *(device.name for device in DEVICES)], lines))
    return "\n\n".join(made)


def seconds(parts: Parts, counted: calls.Calls) -> float:
    """Return the time of a step: the device's, or the host's where that is longer."""
    return max(sum(parts.values()), step.host(counted))


def _times(
    before: Mapping[Case, Parts],
    now: Mapping[Case, Parts],
    counted: tuple[Counted, Counted],
) -> str:
    """Return the milliseconds of whole steps; before, outputs were FP32."""
    policies = {setting.name: setting.policy for setting in SETTINGS}
    lines = []
    for first in (case for case in now if case.device == DEVICES[0].name):
        cells = []
        for device in DEVICES:
            case = replace(first, device=device.name)
            batch = policies[case.setting], case.pool
            old = seconds(before[replace(case, outputs="FP32")], counted[0][batch])
            new = seconds(now[case], counted[1][batch])
            cells.append(f"{1e3 * old:.2f} → {1e3 * new:.2f} ({old / new:.2f}x)")
        names = first.setting, f"{first.pool}", first.optimizer, first.outputs
        lines.append([*names, *cells])
    head = ["tables", "L", "optimizer", "outputs", *(f"{device.name} ms" for device in DEVICES)]
    return _table(head, lines, left=4)
