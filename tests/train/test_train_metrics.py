"""Scores against brute force, paired differences against hand-made numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpembed.train.metrics import accuracy, auc, log_loss
from mpembed.train.report import results_table
from mpembed.train.summary import paired_difference, summarize

SCORED = st.lists(
    st.tuples(st.booleans(), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])), min_size=2
)


def brute_auc(labels: Any, scores: Any) -> float:
    pairs = [
        (p, n)
        for p, a in zip(scores, labels, strict=True)
        if a
        for n, b in zip(scores, labels, strict=True)
        if not b
    ]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs) if pairs else math.nan


@given(SCORED)
def test_auc_counts_pairs_and_half_of_ties(rows: list[tuple[bool, float]]) -> None:
    labels, scores = (np.array(c) for c in zip(*rows, strict=True))
    assert auc(labels, scores) == pytest.approx(brute_auc(labels, scores), nan_ok=True)


@given(SCORED)
def test_log_loss_and_accuracy_are_the_textbook_formulas(rows: list[tuple[bool, float]]) -> None:
    labels = [float(y) for y, _ in rows]
    p = [1 / (1 + math.exp(-z)) for _, z in rows]
    want = -sum(
        math.log(q) if y else math.log(1 - q) for y, q in zip(labels, p, strict=True)
    ) / len(p)
    logits = [z for _, z in rows]
    assert log_loss(labels, logits) == pytest.approx(want)
    right = sum((z > 0) == (y > 0) for y, z in zip(labels, logits, strict=True))
    assert accuracy(labels, logits) == pytest.approx(right / len(rows))


def test_log_loss_of_certain_and_wrong_logits_is_finite() -> None:
    assert log_loss([1, 0], [-1000.0, 1000.0]) == pytest.approx(1000.0)
    assert log_loss([1, 0], [1000.0, -1000.0]) == 0.0


def test_paired_difference_is_a_mean_of_ratios_with_its_standard_error() -> None:
    base, losses = np.array([0.40, 0.50, 0.45]), np.array([0.404, 0.515, 0.4545])
    difference = paired_difference(losses, base)  # +1 %, +3 %, +1 %
    assert difference["percent"] == pytest.approx(5 / 3)
    assert difference["standard_error"] == pytest.approx(math.sqrt(4 / 3) / math.sqrt(3))


def test_pairing_cancels_what_the_seeds_share() -> None:
    base = np.array([0.40, 0.50, 0.60])
    difference = paired_difference(base * 1.01, base)
    assert difference["percent"] == pytest.approx(1.0)
    assert difference["standard_error"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_standard_error(seeds: int) -> None:
    difference = paired_difference(np.full(seeds, 0.44), np.full(seeds, 0.40))
    assert difference == {"percent": pytest.approx(10.0), "standard_error": None}


@pytest.mark.parametrize(
    ("percent", "shown"),
    [(-0.004, "0.00"), (0.004, "0.00"), (0.0, "0.00"), (-0.006, "-0.01"), (1.0, "+1.00")],
)
def test_a_difference_is_never_a_negative_zero(percent: float, shown: str) -> None:
    runs = [_run("a", 0, 0.5), _run("b", 0, 0.5 * (1 + percent / 100))]
    data = {"source": "x", "rows": 9, "table_rows": [2]}
    result = {"data": data, "config": {"dim": 2}, "summary": summarize(runs), "runs": runs}
    cells = [list(column.cells) for column in results_table(result).columns]
    assert cells[2] == ["-", shown]


def _run(setting: str, seed: int, loss: float) -> dict[str, Any]:
    scores = {"log_loss": loss, "auc": 0.7, "accuracy": 0.8}
    return {
        "setting": setting,
        "seed": seed,
        "online": {"log_loss": 2 * loss},
        "validation": scores,
        "test": scores,
        "memory": {"total": 10, "ratio": 2.0, "ratio_embeddings": 3.0},
        "hit_rate": None,
        "step_ms": 1.0,
        "embedding_ms": 0.5,
    }


def test_summary_compares_every_setting_with_the_first_seed_by_seed() -> None:
    runs = [_run("a", 0, 0.4), _run("b", 0, 0.44), _run("a", 1, 0.5), _run("b", 1, 0.51)]
    runs += [_run("a", 2, 0.6), _run("b", 2, 0.636)]
    first, second = summarize(runs)
    assert (first["setting"], first["seeds"], first["log_loss"]) == ("a", 3, pytest.approx(0.5))
    assert first["difference"]["percent"] == 0.0
    assert first["hit_rate"] is None
    assert first["log_loss_error"] == pytest.approx(0.1 / math.sqrt(3))
    want = {"percent": pytest.approx(6), "standard_error": pytest.approx(4 / math.sqrt(3))}
    assert second["difference"] == want
    assert second["online_difference"] == want
    assert second["online_log_loss"] == pytest.approx(2 * (0.44 + 0.51 + 0.636) / 3)
