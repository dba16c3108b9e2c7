"""Labels of points and curves that do not cover one another, and running means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Directions to try, nearest first: right, left, above, below and between.
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200, 70, 110, 250, 290)
_RADII = (7, 14, 22, 32, 44, 58, 74, 92)


def place(
    axes: Any,
    points: Sequence[tuple[float, float, str]],
    size: float = 7,
    obstacles: Sequence[tuple[float, float]] = (),
) -> list[Any]:
    """Label points of an axes whose limits and scales are final.

    Parameters
    ----------
    axes : Axes
        Of matplotlib, in a figure with a canvas.
    points : sequence of (x, y, str)
        In data coordinates.
    size : float
        Font size.
    obstacles : sequence of (x, y)
        More points that labels keep away from, in data coordinates.

    Returns
    -------
    list of Annotation
        One a point; a label that lies far from its point has a line to it.
    """
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72.0
    all_points = [*((x, y) for x, y, _ in points), *obstacles]
    spots = axes.transData.transform(all_points) if all_points else []
    inside = axes.get_window_extent(renderer)
    taken = [_box(x, y, 4 * scale, 4 * scale) for x, y in spots]
    if axes.get_legend() is not None:
        taken.append(axes.get_legend().get_window_extent(renderer).extents)
    made = []
    for (x, y, text), spot in zip(points, spots, strict=False):
        probe = axes.text(0, 0, text, fontsize=size)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        dx, dy, radius = _offset(spot, extent.width, extent.height, taken, inside, scale)
        taken.append(_box(spot[0] + dx, spot[1] + dy, extent.width / 2 + 1, extent.height / 2 + 1))
        line = {"arrowstyle": "-", "lw": 0.5, "color": "#888888", "shrinkB": 2, "shrinkA": 0}
        made.append(
            axes.annotate(
                text,
                (x, y),
                xytext=(dx / scale, dy / scale),
                textcoords="offset points",
                fontsize=size,
                ha="center",
                va="center",
                arrowprops=line if radius > _RADII[0] else None,
            )
        )
    return made


def _offset(
    spot: Any, width: float, height: float, taken: list[Any], inside: Any, scale: float
) -> tuple[float, float, float]:
    """Return where the centre of a label goes, in pixels from its point."""
    best, least = (0.0, 0.0, float(_RADII[0])), np.inf
    for radius in _RADII:
        for angle in np.deg2rad(_ANGLES):
            # The label's edge, not its centre, lies at the radius.
            dx = np.cos(angle) * (radius * scale + width / 2)
            dy = np.sin(angle) * (radius * scale + height / 2)
            box = _box(spot[0] + dx, spot[1] + dy, width / 2, height / 2)
            covered = sum(_overlap(box, other) for other in taken)
            outside = _area(box) - _overlap(box, (inside.x0, inside.y0, inside.x1, inside.y1))
            if covered + outside < least - 1e-6:
                best, least = (float(dx), float(dy), float(radius)), covered + outside
            if least <= 1e-6:
                return best
    return best


def spread(values: list[float], gap: float) -> list[float]:
    """Move values apart.

    Parameters
    ----------
    values : list of float
        In any order.
    gap : float
        How far apart they shall be.

    Returns
    -------
    list of float
        Values that are at least `gap` apart, in the same order and near the given ones.
    """
    order = np.argsort(values, kind="stable")
    moved = np.array(values, np.float64)[order]
    for _ in range(200):
        close = moved[:-1] + gap - moved[1:]
        if not (close > 1e-9).any():
            break
        for at in np.flatnonzero(close > 1e-9):
            shift = (moved[at] + gap - moved[at + 1]) / 2
            if shift > 0:
                moved[at] -= shift
                moved[at + 1] += shift
    result = np.empty_like(moved)
    result[order] = moved
    return [float(value) for value in result]


def smooth(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Take a running mean.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        In order.
    width : int
        How many of them a mean is of, an odd number; fewer at the ends.

    Returns
    -------
    ndarray of float64, shape (n,)
        The means.
    """
    half = width // 2
    parts = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return np.array([part.mean() for part in parts])


def _box(x: float, y: float, half_width: float, half_height: float) -> tuple[float, ...]:
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
