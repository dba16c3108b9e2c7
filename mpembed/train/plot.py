"""Plot a run: loss curves, and log loss against memory."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mpembed._files.replacement import write_file


def _curves(axes: Axes, result: dict[str, Any]) -> None:
    for row in result["summary"]:
        curves = [r["curve"] for r in result["runs"] if r["setting"] == row["setting"]]
        # Of a run that was stopped, the last seed's may end before the others.
        curves = [curve for curve in curves if len(curve) == len(curves[0])]
        rows = [point["rows"] for point in curves[0]]
        loss = np.mean([[point["loss"] for point in curve] for curve in curves], axis=0)
        axes.plot(rows, loss, label=row["setting"], linewidth=1)
    axes.set(xlabel="clicks trained on", ylabel="training log loss")
    axes.legend(fontsize="small")


def _memory(axes: Axes, result: dict[str, Any]) -> None:
    for row in result["summary"]:
        if row["log_loss"] is None:  # stopped before that
            continue
        size = row["bytes"] / 1e6
        axes.plot(size, row["log_loss"], "o")
        axes.annotate(
            row["setting"],
            (size, row["log_loss"]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set(xlabel="tables, all counted (MB)", ylabel="test log loss")
    axes.margins(x=0.25)
    axes.set_xlim(left=0.0)


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw both plots into one file.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.
    path : Path
        The file; its suffix chooses the format.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curves, memory = figure.subplots(1, 2)
    _curves(curves, result)
    _memory(memory, result)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format=path.suffix[1:].lower())
    write_file(path, drawn.getvalue())
