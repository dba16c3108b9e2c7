"""What the plots show, and that their names can be read."""

from __future__ import annotations

import resource
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from mpembed.train.plot import draw, write_plot
from mpembed.train.plot_labels import place
from mpembed.train.report import write_json
from mpembed.train.summary import summarize

NAMES = ("fp32", "int8 + 5 %", "int4 + 5 %", "int4 + 1 %", "int2 + 5 %", "int4 nearest")
MEGABYTES = (28.3, 13.4, 8.4, 7.0, 6.8, 6.6)
LOSSES = (0.4938, 0.4945, 0.4939, 0.4938, 0.4936, 0.5193)


def result(seeds: int, points: int = 100) -> dict[str, Any]:
    """Make the results of a run like the one in the README."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        noise = rng.normal(0, 0.01, points)
        for name, size, loss in zip(NAMES, MEGABYTES, LOSSES, strict=True):
            of_test = {"log_loss": loss + 0.001 * seed, "auc": 0.75, "accuracy": 0.76}
            curve = 0.5 + 0.15 * np.exp(-np.arange(points) / 20) + noise
            runs.append(
                {
                    "setting": name,
                    "seed": seed,
                    "online": {"log_loss": loss},
                    "validation": of_test,
                    "test": of_test,
                    "memory": {"total": size * 1e6, "ratio": 1.0, "ratio_embeddings": 1.0},
                    "hit_rate": None,
                    "step_ms": 1.0,
                    "embedding_ms": 1.0,
                    "curve": [
                        {"rows": 128 * (i + 1), "loss": float(x)} for i, x in enumerate(curve)
                    ],
                }
            )
    data = {"source": "clicks.csv", "rows": 12_800}
    return {"data": data, "summary": summarize(runs), "runs": runs}


def errorbars(axes: Any) -> list[ErrorbarContainer]:
    return [one for one in axes.containers if isinstance(one, ErrorbarContainer) and one[2]]


@pytest.mark.parametrize("seeds", [1, 3])
def test_names_do_not_cover_one_another_and_lie_in_the_figure(seeds: int) -> None:
    figure = draw(result(seeds))
    figure.canvas.draw()  # puts the texts in their places
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for axes in figure.axes:
        texts = [text for text in axes.texts if text.get_text()]
        assert sorted(text.get_text() for text in texts) == sorted(NAMES)
        # That of an annotation would have its line to the point, too.
        boxes = [Text.get_window_extent(text, renderer) for text in texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        for box in boxes:
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_a_label_keeps_away_from_obstacles() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    obstacle = (0.6, 0.5)

    def hidden(obstacles: list[tuple[float, float]]) -> bool:
        (label,) = place(axes, [(0.5, 0.5, "a long label")], 9.0, obstacles)
        figure.canvas.draw()  # puts it in its place
        box = Text.get_window_extent(label)
        return bool(box.contains(*axes.transData.transform(obstacle)))

    assert hidden([])
    assert not hidden([obstacle])


@pytest.mark.parametrize(("seeds", "shown"), [(1, False), (2, False), (3, True)])
def test_error_bars_need_three_seeds(seeds: int, shown: bool) -> None:
    curves, memory = draw(result(seeds)).axes
    assert len(errorbars(memory)) == (len(NAMES) if shown else 0)
    assert memory.get_title() == ("mean ± its standard error over the seeds" if shown else "")
    assert not errorbars(curves)


def test_the_title_has_the_name_of_the_data() -> None:
    assert draw(result(1)).get_suptitle() == "clicks.csv: 12,800 clicks, 1 seed"
    assert draw(result(3)).get_suptitle() == "clicks.csv: 12,800 clicks, 3 seeds"


def test_curves_are_smoother_than_the_losses() -> None:
    made = result(1)
    curves, _ = draw(made).axes
    assert curves.get_ylabel() == "training log loss, running mean"
    for line, run in zip(curves.get_lines(), made["runs"], strict=True):
        raw = [point["loss"] for point in run["curve"]]
        drawn = np.asarray(line.get_ydata(), np.float64)
        assert np.abs(np.diff(drawn[50:])).mean() < 0.3 * np.abs(np.diff(raw[50:])).mean()


@pytest.mark.parametrize(("points", "suffix"), [(1, "png"), (2, "svg"), (7, "pdf")])
def test_short_runs_can_be_drawn(points: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plot.{suffix}"
    write_plot(result(1, points), path)
    first = path.read_bytes()
    assert len(first) > 5000
    write_plot(result(1, points), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("trained", [0, 1])
def test_a_run_that_was_stopped_can_be_drawn(trained: int) -> None:
    made = result(1)
    for run in made["runs"][trained:]:
        run.update(curve=[], test=dict.fromkeys(run["test"]))
    made["summary"] = summarize(made["runs"])
    for axes in draw(made).axes:
        assert [text.get_text() for text in axes.texts] == list(NAMES[:trained])


@pytest.mark.parametrize("write", [write_plot, write_json])
def test_a_disk_that_fills_up_leaves_the_old_file(
    tmp_path: Path, write: Callable[[dict[str, Any], Path], None]
) -> None:
    path = tmp_path / "result.png"
    path.write_text("the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(result(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]
