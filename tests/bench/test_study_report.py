"""bench/study: statistics, the results file, and the page and plots of fixed results."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import ROOT
from study import results
from study.settings import Setting, all_settings, changes, deciding
from study.statistics import estimate, loss_percent, share_percent

SETTINGS = {
    Setting(): (0.5, 256.0, 0.0),
    Setting("int8", 0.05): (0.499, 72.0, 14.0),
    Setting("int4", 0.05): (0.4, 36.0, 14.0),
    Setting("int4", 0.05, "paired"): (0.45, 36.0, 14.0),
    Setting("int4", 0.05, "paired", rate=0.5): (0.46, 36.0, 14.0),
    Setting("int6"): (0.49, 52.0, 0.0),
    Setting("int6", 0.0, "paired"): (0.495, 52.0, 0.0),
    Setting("int4"): (0.35, 36.0, 0.0),
    Setting("int4", 0.0, "nearest"): (0.1, 36.0, 0.0),
    Setting("fp32", dim=12): (0.47, 48.0, 0.0),
    Setting(optimizer="adam"): (0.48, 256.0, 0.0),
    Setting("int4", 0.05, optimizer="adam"): (0.36, 36.0, 14.0),
}
DATA = {"name": "synthetic", "events": 1000, "rows": 100}


def runs() -> list[dict[str, Any]]:
    return [
        as_run(setting, *found, seed) for setting, found in SETTINGS.items() for seed in range(3)
    ]


def as_run(setting: Setting, metric: float, row: float, cache: float, seed: int) -> dict[str, Any]:
    """Return a line of the results file; of its FP32 metric a setting keeps the same share."""
    noise = 0.01 * seed
    curve = 5 - np.linspace(0, 1, 60) * metric - noise
    return {
        "model": "sequence",
        "data": DATA,
        "setting": setting.as_dict(),
        "name": setting.name,
        "seed": seed,
        "metrics": {"ndcg@10": metric * (1 + noise), "hr@10": 0.5},
        "bytes": {"row": row, "cache": cache, "state": 4.0},
        "hit_rate": 0.5 if cache else None,
        "noise": {"item": 0.1, "other": 0.3} if cache and seed else {},
        "steps": 600,
        "curve": curve.tolist(),
        "seconds": 1.0,
    }


def test_differences_are_paired_by_seed() -> None:
    found = loss_percent({0: 0.9, 1: 1.9, 2: 9.0}, {1: 2.0, 0: 1.0}, higher=True)
    assert found.seeds == 2
    assert found.mean == pytest.approx(7.5)  # 10 % and 5 %
    assert found.error == pytest.approx(2.5)
    assert str(found) == "+7.50 ± 2.50"
    worse = loss_percent({0: 1.1}, {0: 1.0}, higher=False)
    assert worse.mean == pytest.approx(10.0)
    assert math.isnan(worse.error)
    assert str(worse) == "+10.00"
    assert str(loss_percent({}, {0: 1.0}, higher=False)) == "-"
    assert str(estimate([-1e-9, -1e-9])) == "+0.00 ± 0.00"
    assert str(estimate([-1.0, -1.0])) == "\N{MINUS SIGN}1.00 ± 0.00"


def test_the_share_of_a_loss_has_the_error_of_a_ratio_of_means() -> None:
    found = share_percent({0: 1.0, 1: 3.0, 2: 99.0}, {0: 4.0, 1: 4.0, 3: 1.0})
    assert found.seeds == 2
    assert found.mean == pytest.approx(50.0)
    assert found.error == pytest.approx(25.0)
    exact = share_percent({0: 1.0, 1: 3.0}, {0: 2.0, 1: 6.0})
    assert (exact.mean, exact.error) == pytest.approx((50.0, 0.0))
    assert share_percent({}, {0: 1.0}).seeds == 0
    assert share_percent({0: 1.0}, {0: 0.0}).seeds == 0


def test_what_is_left_of_a_loss_starts_at_the_first_change_that_was_run(tmp_path: Path) -> None:
    from study.changes import PAGE, WHICH_ROWS, left, own, write
    from study.summary import group_runs

    more = [
        as_run(Setting("int4", 0.05, "paired", batch=4), 0.475, 36.0, 14.0, seed)
        for seed in range(3)
    ]
    (line,) = lines(left(group_runs([*runs(), *more])))
    assert line == [
        "",
        "+20.00 ± 0.00",
        "+10.00 ± 0.00; 50 ± 0",
        "+8.00 ± 0.00; 40 ± 0",
        "+5.00 ± 0.00; 25 ± 0",
    ]
    more = [
        as_run(Setting("int4", 0.05, per_lookup=True), 0.3, 36.0, 14.0, seed) for seed in range(3)
    ]
    # Without an FP32 run that is trained alike it is no loss to start from.
    (line,) = lines(left(group_runs([*runs(), *more])))
    assert line[:2] == ["", "+20.00 ± 0.00"]
    more += [as_run(Setting(per_lookup=True), 0.4, 256.0, 0.0, seed) for seed in range(3)]
    (line,) = lines(left(group_runs([*runs(), *more])))
    assert line[:3] == ["+25.00 ± 0.00", "+20.00 ± 0.00; 80 ± 0", "+10.00 ± 0.00; 40 ± 0"]
    assert line[4] == ""
    fewer = [one for one in more if one["seed"] != 1 or one["name"] != "fp32, update a lookup"]
    (line,) = lines(own(group_runs([*runs(), *fewer])))
    assert line[0] == "+20.00 ± 0.00 (2 of 3 seeds)"
    page = write([*runs(), *more], tmp_path)
    written = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert page in written
    once = WHICH_ROWS.read_text(encoding="utf-8")
    assert written.endswith("\n\n" + once)
    assert (ROOT / "docs" / PAGE).read_text(encoding="utf-8").endswith("\n\n" + once)
    (line,) = lines(own(group_runs([*runs(), *more])))
    assert line == ["+20.00 ± 0.00", "", ""]
    small = [one for one in runs() if one["name"] == "fp32"]
    small += [as_run(Setting("int4", 0.05), 0.499, 36.0, 14.0, seed) for seed in range(3)]
    small += [
        as_run(Setting("int4", 0.05, "paired"), 0.4995, 36.0, 14.0, seed) for seed in range(3)
    ]
    (line,) = lines(left(group_runs(small)))
    assert line == ["", "+0.20 ± 0.00", "+0.10 ± 0.00", "", ""]


def lines(text: str) -> list[list[str]]:
    """Return the cells of a table's lines, without the first of each."""
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()[2:]]


def test_settings_have_names_of_their_own_and_the_deciding_ones_come_first() -> None:
    parts = all_settings(16, ["adam"], {"fp32": 12}, several=True)
    names = [setting.name for part in parts for setting in part]
    assert len(names) == len(set(names))
    assert parts[0] == deciding()
    assert {"int4 + 5 % stochastic lru", "fp32, D=12", "int4 + 5 % paired, adam"} <= set(names)
    changed = changes(several=True)
    assert {setting.name for setting in changed} <= set(names)
    assert len(changed) == len(set(changed)) == 9
    assert not any(setting.per_lookup for setting in changes(several=False))
    assert not Setting("int9").available
    assert Setting("int4", 0.05).available


def test_a_rerun_finds_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert results.read(path) == []
    first, second, third = runs()[:3]
    results.append(path, first)
    results.append(path, second)
    with path.open("ab") as file:
        file.write(b'{"model": "seq')  # killed while it wrote
    assert results.read(path) == [first, second]
    results.append(path, third)
    assert results.read(path) == [first, second, third]
    key = results.key("sequence", DATA, Setting(), 2)
    assert [results.run_key(one) == key for one in results.read(path)] == [False, False, True]
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"line 1 is not a run of this study.*--out"):
        results.read(path)


def test_the_page_shows_losses_bytes_and_what_is_best_at_equal_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from study import report

    failed = {**runs()[-1], "seed": 0, "name": "int2", "setting": Setting("int2").as_dict()}
    del failed["metrics"], failed["bytes"], failed["curve"]
    said = report.write([*runs(), {**failed, "error": "diverged"}], tmp_path)
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert said in page
    (line,) = [x for x in said.splitlines() if x.startswith("| Sequence model, synthetic")]
    assert "| +20.00 ± 0.00 | +10.00 ± 0.00 |" in line
    assert line.endswith("| int6 paired: +1.00 ± 0.00 |")
    assert "| int4 + 5 % paired | 50.0 | 50 | 0.2 | 3 | 0.4545 | +10.00 ± 0.00 | " in page
    assert "| int4 + 5 % stochastic, adam | 50.0 | 50 | 0.2 | 3 | 0.3636 | +28.00" in page
    assert "| +28.00 ± 0.00 | +25.00 ± 0.00 |" in page
    assert "| int2 stochastic | diverged |" in page
    assert "| int6 | \N{MINUS SIGN}1.02 ± 0.00 |" in page  # paired against independent draws
    plots = re.findall(r"\]\((\w+\.svg)\)", page)
    assert plots == ["study_sequence_synthetic.svg"]
    drawn = (tmp_path / plots[0]).read_bytes()
    assert len(drawn) < 80_000
    report.write(runs(), tmp_path)
    assert (tmp_path / plots[0]).read_bytes() == drawn


def test_no_label_of_a_plot_covers_another() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    from study import figures
    from study.summary import group_runs

    from mpembed.train.plot_labels import spread

    (group,) = group_runs(runs())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    try:
        drawn = figures.loss_against_bytes(left, group)
        figures.training_excess(right, group)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        named = [label for label in drawn if label.get_text()]
        assert len(named) == 4  # roundings share a label
        # An annotation's own extent would hold its line, too.
        boxes = [plt.Text.get_window_extent(label, renderer) for label in named]
        boxes += [text.get_window_extent(renderer) for text in right.texts]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
    finally:
        plt.close(figure)
    assert np.diff(sorted(spread([1.0, 1.0, 1.1, 9.0], 0.5))).min() > 0.49
    assert spread([3.0, 1.0], 0.5) == [3.0, 1.0]
