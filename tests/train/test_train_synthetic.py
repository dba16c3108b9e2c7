"""The generator: the same clicks however asked, and the figures that it promises."""

from __future__ import annotations

import numpy as np
import pytest

from mpembed.train.data.clicks import MISSING_CAT, MISSING_INT, Clicks
from mpembed.train.data.synthetic import SyntheticSource, generate, log_odds, rank_law
from mpembed.train.data.synthetic_columns import (
    CAT_COLUMNS,
    INT_COLUMNS,
    INT_QUANTILES,
    MISSING_TOGETHER,
)
from mpembed.train.metrics import auc, log_loss

ROWS = 80_000
columns = pytest.mark.parametrize("column", range(26), ids=lambda c: f"C{c + 1}")


def assert_equal(a: Clicks, b: Clicks) -> None:
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.dense, b.dense)
    np.testing.assert_array_equal(a.cats, b.cats)


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    return generate(0, ROWS)


def test_a_click_depends_on_its_row_alone(clicks: Clicks) -> None:
    assert_equal(generate(0, 1000), clicks[:1000])
    assert_equal(generate(70_123, 70_150), clicks[70_123:70_150])


def test_chunks_join_to_the_whole(clicks: Clicks) -> None:
    source = SyntheticSource(100_000)
    assert source.rows == 100_000
    chunks = list(source.chunks(40_000))
    assert len(chunks) > 1
    start = 0
    for chunk in chunks:
        assert_equal(chunk, clicks[start : start + len(chunk)])
        start += len(chunk)
    assert start == 40_000


def test_the_clicks_are_the_same_on_every_machine() -> None:
    few = generate(1234, 1238)
    assert few.labels.tolist() == [0, 0, 1, 0]
    assert few.dense[4].tolist() == [20630, 3946, 5955, -9223372036854775808]
    assert few.cats[2].tolist() == [3589605351, 3292400803, 183837644, 3003449312]


@columns
def test_skew_follows_the_figures(clicks: Clicks, column: int) -> None:
    figures = CAT_COLUMNS[column]
    present = clicks.cats[column][clicks.cats[column] != MISSING_CAT]
    assert 1 - len(present) / ROWS == pytest.approx(figures.missing, abs=0.006)
    _, counts = np.unique(present, return_counts=True)
    # Six standard deviations of a count are within 8 % and 4 of it for all of the columns; sets
    # of few ids have their own laws, which four anchors give only roughly.
    slack = 0.08 * figures.distinct_80k + 6
    assert abs(len(counts) - figures.distinct_80k) <= slack
    shares = np.cumsum(np.sort(counts)[::-1]) / len(present)
    for rank, share in figures.anchors:
        if rank <= figures.distinct_80k // 2:
            # Ranks are by what was observed, which takes a little more than the true ranks.
            assert shares[rank - 1] == pytest.approx(share, abs=0.025)


@columns
def test_rank_law_is_a_distribution(column: int) -> None:
    edges, shares = rank_law(column)
    assert edges[0] == 0
    assert edges[-1] == CAT_COLUMNS[column].cardinality
    assert (np.diff(edges) > 0).all()
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert (np.diff(shares) > 0).all()


def test_values_go_missing_together(clicks: Clicks) -> None:
    missing = clicks.cats == MISSING_CAT
    for group in MISSING_TOGETHER:
        for column in group[1:]:
            np.testing.assert_array_equal(missing[column], missing[group[0]])


@pytest.mark.parametrize("column", range(13))
def test_integers_follow_their_quantiles(clicks: Clicks, column: int) -> None:
    missing, quantiles = INT_COLUMNS[column]
    values = clicks.dense[column]
    present = values[values != MISSING_INT]
    assert 1 - len(present) / ROWS == pytest.approx(missing, abs=0.012)
    assert present.min() >= quantiles[0]
    assert present.max() <= quantiles[-1]
    for share, quantile in zip(INT_QUANTILES[1:-1], quantiles[1:-1], strict=True):
        below, upto = (present < quantile).mean(), (present <= quantile).mean()
        assert below - 0.02 <= share <= upto + 0.02


def test_share_of_clicks_and_signal(clicks: Clicks) -> None:
    assert clicks.labels.mean() == pytest.approx(0.256, abs=0.006)
    truth = log_odds(0, ROWS)
    constant = np.full(ROWS, np.log(0.256 / 0.744))
    assert log_loss(clicks.labels, truth) < 0.85 * log_loss(clicks.labels, constant)
    assert auc(clicks.labels, truth) > 0.75
    # The labels are drawn from these odds and no others: calibrated in every tenth of them.
    for tenth in np.array_split(np.argsort(truth), 10):
        expected = 1 / (1 + np.exp(-truth[tenth]))
        deviation = np.sqrt((expected * (1 - expected)).sum())
        assert abs((clicks.labels[tenth] - expected).sum()) < 5 * deviation
