"""The plots of ``docs/benchmarks.md``, as small SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import targets
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rounds import LIMIT, OURS

plt.switch_backend("Agg")
Result = dict[str, Any]
COLOURS = {OURS: "#1f6f8b", "torch": "#e0a030", "FBGEMM": "#b04a5a"}
LIMIT_COLOUR = "#333333"
# Text stays text, and the same numbers give the same bytes.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "mpembed", "font.size": 9}
PEERS, ROWS, HITS = "benchmarks_peers.svg", "benchmarks_rows.svg", "benchmarks_hits.svg"
BACKWARD = [
    ("fp32", "sgd"),
    ("fp32", "rowwise_adagrad"),
    ("int8", "rowwise_adagrad"),
    ("int4", "rowwise_adagrad"),
    ("fp32", "adagrad"),
]


def draw(results: list[Result], folder: Path) -> dict[str, str]:
    """Draw all of them; return what each file shows."""
    with plt.rc_context(STYLE):
        return {
            PEERS: _peers(results, folder / PEERS),
            ROWS: _rows(results, folder / ROWS),
            HITS: _hits(results, folder / HITS),
        }


def rate(found: Result, name: str) -> float:
    """Return million items a second."""
    return float(found["items"] / found["seconds"][name] / 1e6)


def _save(figure: Any, path: Path, below: float = 0) -> None:
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(axes: Any, groups: dict[str, Result], title: str) -> None:
    """Draw a bar for each contender and a line for the limit; what was not run stays empty."""
    for at, found in enumerate(groups.values()):
        contenders = [name for name in found.get("seconds", {}) if name != LIMIT]
        width = 0.8 / max(len(contenders), 1)
        for i, name in enumerate(contenders):
            colour = COLOURS[name.split()[0]]
            axes.bar(at - 0.4 + (i + 0.5) * width, rate(found, name), width, color=colour)
        if LIMIT in found.get("seconds", {}):
            axes.hlines(
                rate(found, LIMIT), at - 0.42, at + 0.42, colors=LIMIT_COLOUR, linestyles="--"
            )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_title(title)
    axes.set_ylabel("million lookups a second")


def _peers(results: list[Result], path: Path) -> str:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    base = {"operation": "forward", "shape": "4Mx64", "distribution": "uniform"}
    forward = {p: {**base, "precision": p} for p in ("fp32", "fp16", "int8", "int4")}
    backward = {
        f"{targets.OPTIMIZERS[o].replace(' ', chr(10))}\n{p}": {
            **base,
            "operation": "backward",
            "precision": p,
            "optimizer": o,
        }
        for p, o in BACKWARD
    }
    for axes, cases, title in ((left, forward, "forward"), (right, backward, "backward + update")):
        groups = {name: targets.find(results, case, 2) for name, case in cases.items()}
        _bars(axes, groups, f"{title}, 4M x 64, uniform, 2 threads")
    handles: list[Any] = [Patch(color=colour) for colour in COLOURS.values()]
    handles.append(Line2D([], [], color=LIMIT_COLOUR, linestyle="--"))
    names = [*COLOURS, LIMIT]
    figure.legend(handles, names, ncols=len(names), loc="lower center", frameon=False)
    _save(figure, path, below=0.07)
    return "Rates of mpembed and its peers; the dashed lines are the limit"


def _series(results: list[Result], case: Result, x: Any) -> dict[int, list[tuple[float, Result]]]:
    """Return for each number of threads the results of a case by what is on the x axis."""
    found: dict[int, list[tuple[float, Result]]] = {}
    for one in results:
        if case.items() <= {**one["case"], "group": one["group"]}.items():
            found.setdefault(one["case"]["threads"], []).append((float(x(one)), one))
    return {t: sorted(points, key=lambda p: p[0]) for t, points in sorted(found.items())}


def _lines(axes: Any, series: dict[int, list[tuple[float, Result]]], other: str) -> None:
    """Draw mpembed's rates and those of `other`, dashed."""
    for threads, points in series.items():
        style = {"alpha": 1.0 if threads == 2 else 0.55}
        label = f"{threads} thread{'s' * (threads > 1)}"
        xs = [x for x, _ in points]
        ours = [rate(one, OURS) for _, one in points]
        axes.plot(xs, ours, "o-", color=COLOURS[OURS], label=f"{OURS}, {label}", **style)
        theirs = [(x, rate(one, other)) for x, one in points if other in one["seconds"]]
        if theirs:
            colour = COLOURS.get(other.split()[0], LIMIT_COLOUR)
            axes.plot(
                *zip(*theirs, strict=True), "--", color=colour, label=f"{other}, {label}", **style
            )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("million lookups a second")
    if series:
        axes.legend(frameon=False, fontsize=7)


def _rows(results: list[Result], path: Path) -> str:
    figure, both = plt.subplots(1, 2, figsize=(10, 3.2))
    for axes, operation in zip(both, ("forward", "backward"), strict=True):
        case = {"group": "growth rows", "operation": operation}
        _lines(axes, _series(results, case, lambda one: one["case"]["rows"]), LIMIT)
        axes.set_xscale("log")
        axes.set_xlabel("rows of the table (INT4 x 64), 8000 different ones a batch")
        axes.set_title({"forward": "forward", "backward": "backward + rowwise Adagrad"}[operation])
    _save(figure, path)
    return "Rate against the number of rows; the dashed lines are the limit"


def _hits(results: list[Result], path: Path) -> str:
    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    series = _series(results, {"group": "cache hit rate"}, lambda one: one["hit_rate"])
    _lines(axes, series, "FBGEMM fp32")
    axes.set_xlabel("hits among the unique rows of a batch")
    axes.set_title("whole step, INT4 x 64 + 5 % LFU cache")
    _save(figure, path)
    return "Rate of the whole step against the hit rate"
