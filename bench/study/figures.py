"""The plots of ``docs/study.md``: loss against bytes, and the training loss above FP32's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from study.settings import BASE, Setting
from study.summary import Group, plain

from mpembed.train import plot_labels

plt.switch_backend("Agg")
# Text stays text, and the same numbers give the same bytes.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "mpembed", "font.size": 9}
COLOURS = {"stochastic": "#1f6f8b", "paired": "#e0802f", "nearest": "#888888"}
CURVES = {
    "int8 + 5 % stochastic": "#2f8f4f",
    "int6 paired": "#8a5fb0",
    "int4 + 5 % stochastic": COLOURS["stochastic"],
    "int4 + 5 % paired": COLOURS["paired"],
}
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
SMOOTH = 7  # stretches of a running mean


def draw(group: Group, folder: Path) -> str:
    """Draw the plots of a group into one file; return its name."""
    path = folder / f"{group.slug}.svg"
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
        figure.subplots_adjust(left=0.06, right=0.86, bottom=0.12, top=0.91, wspace=0.2)
        loss_against_bytes(left, group)
        training_excess(right, group)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    return path.name


def loss_against_bytes(axes: Any, group: Group) -> list[Any]:
    """Draw a point for each way of storing the rows; return the labels."""
    shown: list[tuple[Setting, float, float, float]] = []
    for setting in plain(group):
        loss = group.loss(setting.name)
        if setting.name != BASE and loss.seeds:
            error = 0.0 if np.isnan(loss.error) else loss.error
            shown.append((setting, group.bytes(setting.name), loss.mean, error))
    for setting, size, loss_mean, error in shown:
        colour, filled = COLOURS[setting.rounding], setting.load > 0
        style = {"mfc": colour if filled else "white", "ms": 5, "lw": 0.8}
        axes.errorbar(size, loss_mean, error, fmt="o", color=colour, **style)
    axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    axes.set_yscale("symlog", linthresh=2.0, linscale=0.8)
    worst = max((loss_mean + error for _, _, loss_mean, error in shown), default=1.0)
    least = min((loss_mean - error for _, _, loss_mean, error in shown), default=0.0)
    axes.set_ylim(min(-1.0, 1.3 * least), max(2.0, 1.6 * worst))
    ticks = [tick for tick in TICKS if tick < 1.6 * worst]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.15)
    axes.set_xlabel("bytes a row, cache included")
    axes.set_ylabel("worse than FP32, %")
    axes.set_title(group.title)
    _legend(axes, {s.rounding for s, *_ in shown})
    axes.figure.canvas.draw()
    return plot_labels.place(axes, _named(shown))


def _named(shown: list[tuple[Setting, float, float, float]]) -> list[tuple[float, float, str]]:
    """Return one label for the roundings of a precision and cache, at the worst of them."""
    first: dict[str, tuple[float, float, str]] = {}
    for setting, size, loss_mean, _ in sorted(shown, key=lambda one: -one[2]):
        first.setdefault(setting.storage, (size, loss_mean, setting.storage))
    # The other points keep labels away as well, without one of their own.
    rest = [
        (size, y, "") for _, size, y, _ in shown if (size, y) not in {p[:2] for p in first.values()}
    ]
    return [*first.values(), *rest]


def _legend(axes: Any, roundings: set[str]) -> None:
    handles: list[Any] = [
        Line2D([], [], marker="o", ls="", color=colour, label=name)
        for name, colour in COLOURS.items()
        if name in roundings
    ]
    handles.append(
        Line2D([], [], marker="o", ls="", color="#555555", mfc="white", label="no cache")
    )
    axes.legend(handles=handles, frameon=False, fontsize=7, loc="upper right")


def training_excess(axes: Any, group: Group) -> None:
    """Draw how much higher the training loss is than FP32's, smoothed, with its standard error."""
    ends: list[tuple[str, str, float]] = []
    for name, colour in CURVES.items():
        found = group.excess(name)
        if found is None:
            continue
        mean, error = (plot_labels.smooth(values, SMOOTH) for values in found)
        x = np.linspace(0, 100, len(mean))
        axes.plot(x, mean, color=colour, lw=1.5)
        axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        ends.append((name, colour, float(mean[-1])))
    axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    axes.set_xlim(0, 100)
    axes.set_xlabel("training, %")
    axes.set_title("training loss above FP32's")
    low, high = axes.get_ylim()
    heights = plot_labels.spread([end for *_, end in ends], (high - low) / 18)
    if heights:  # none beside the numbers of the axis
        lift = max(0.0, low + (high - low) / 30 - min(heights))
        heights = [height + lift for height in heights]
    for (name, colour, _), height in zip(ends, heights, strict=True):
        axes.text(101.5, height, name, color=colour, fontsize=8, va="center")
