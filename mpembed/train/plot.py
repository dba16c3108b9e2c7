"""Plot a run: training loss, and test loss against memory."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mpembed._files.replacement import write_file
from mpembed.train import plot_labels

_FONT_SIZE = 9.0
# Text stays text, and the same results give the same bytes.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "mpembed"}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_SMOOTH = 9  # points of a running mean, of about a hundred
# The loss falls fastest at the start; what comes later decides the scale.
_SETTLED = 0.1


def _colours(result: dict[str, Any]) -> dict[str, Any]:
    """Return a colour for each setting; that of the first, the base of comparisons, is black."""
    _, *others = (row["setting"] for row in result["summary"])
    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    colours = {name: palette[i % len(palette)] for i, name in enumerate(others)}
    return {result["summary"][0]["setting"]: "black", **colours}


def _mean_curve(
    result: dict[str, Any], setting: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return clicks trained on, and the smoothed loss, a mean over the seeds."""
    curves = [r["curve"] for r in result["runs"] if r["setting"] == setting]
    # Of a run that was stopped, the last seed's may end before the others, or not have begun.
    curves = [curve for curve in curves if len(curve) == len(curves[0])]
    if not curves[0]:
        return np.empty(0), np.empty(0)
    rows = np.array([point["rows"] for point in curves[0]], np.float64)
    losses = np.array([[point["loss"] for point in curve] for curve in curves], np.float64)
    width = min(_SMOOTH, max(1, len(rows) // 4))
    # The last point may be of a few clicks only.
    clicks = np.diff(rows, prepend=0.0)
    total = plot_labels.smooth(losses.mean(axis=0) * clicks, width)
    mean = total / plot_labels.smooth(clicks, width)
    full = slice(width // 2, len(rows) - width // 2)  # means of fewer points move too much
    return rows[full], mean[full]


def _curves(axes: Axes, result: dict[str, Any], colours: dict[str, Any]) -> None:
    ends: list[tuple[str, float]] = []
    settled: list[float] = []
    for name, colour in colours.items():
        rows, loss = _mean_curve(result, name)
        if not len(rows):
            continue
        # Curves often coincide; the first one stays visible under the others.
        axes.plot(rows, loss, color=colour, linewidth=1.2 if ends else 2.6)
        ends.append((name, float(loss[-1])))
        settled += loss[int(len(loss) * _SETTLED) :].tolist()
    axes.set(xlabel="clicks trained on", ylabel="training log loss, running mean")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if not ends:
        return
    margin = 0.08 * (max(settled) - min(settled)) or 0.01
    low, high = min(settled) - margin, max(settled) + margin
    axes.set(xlim=(0, result["runs"][0]["curve"][-1]["rows"]), ylim=(low, high))
    gap = (high - low) / 20
    heights = plot_labels.spread([end for _, end in ends], gap)
    lift = max(0.0, low + gap / 2 - min(heights))
    for (name, _), height in zip(ends, heights, strict=True):
        axes.text(
            1.01, (height + lift - low) / (high - low), name, color=colours[name],
            fontsize=_FONT_SIZE, va="center", transform=axes.transAxes,
        )  # fmt: skip


def _memory(axes: Axes, result: dict[str, Any], colours: dict[str, Any]) -> None:
    points: list[tuple[float, float, str]] = []
    bars: list[tuple[float, float]] = []
    for row in result["summary"]:
        if row["log_loss"] is None:  # stopped before that
            continue
        size, loss, error = row["bytes"] / 1e6, row["log_loss"], row["log_loss_error"]
        axes.errorbar(
            size, loss, error, fmt="o", color=colours[row["setting"]], markersize=5, capsize=3
        )
        points.append((size, loss, row["setting"]))
        bars += [(size, loss + end * (error or 0.0)) for end in (-1, -0.5, 0.5, 1)]
    with_errors = any(row["log_loss_error"] is not None for row in result["summary"])
    title = "mean ± its standard error over the seeds" if with_errors else ""
    axes.set(xlabel="tables, all counted (MB)", ylabel="test log loss")
    axes.set_title(title, fontsize=_FONT_SIZE)
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=0.0)
    axes.figure.canvas.draw()  # the layout is final
    plot_labels.place(axes, points, _FONT_SIZE, bars if with_errors else ())


def draw(result: dict[str, Any]) -> Figure:
    """Draw both plots.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.

    Returns
    -------
    Figure
        The training loss on the left, the test loss against memory on the right.
    """
    figure = Figure(figsize=(11, 4.2))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.12, top=0.86, wspace=0.42)
    curves, memory = figure.subplots(1, 2)
    data, seeds = result["data"], result["summary"][0]["seeds"]
    figure.suptitle(
        f"{data['source']}: {data['rows']:,} clicks, {seeds} seed{'s' if seeds > 1 else ''}",
        fontsize=11,
    )
    colours = _colours(result)
    for axes in (curves, memory):
        axes.spines[["top", "right"]].set_visible(False)
    _curves(curves, result, colours)
    _memory(memory, result, colours)
    return figure


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw both plots into one file.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.
    path : Path
        The file; its suffix chooses the format.
    """
    drawn, kind = BytesIO(), path.suffix[1:].lower()
    with rc_context(_STYLE):
        draw(result).savefig(drawn, dpi=120, format=kind, metadata=_UNDATED.get(kind))
    write_file(path, drawn.getvalue())
