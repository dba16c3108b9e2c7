"""Numbers as features: statistics of any chunks, and what is done with extreme ones."""

from __future__ import annotations

import numpy as np
import pytest

from mpembed.train.data.features import DenseStatistics, DenseTransform, encode_dense


def statistics(numbers: np.ndarray, chunk: int) -> list[DenseTransform]:
    found = DenseStatistics(len(numbers))
    for start in range(0, numbers.shape[1], chunk):
        found.add(numbers[:, start : start + chunk])
    return found.transforms("standard", 2)


def test_mean_and_deviation_are_right_and_the_same_for_any_chunks() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(1e6, 3.0, (3, 20_000))
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    numbers[2] = np.nan
    found = statistics(numbers, 20_000)
    for chunk in (1000, 8192, 9001):
        assert statistics(numbers, chunk) == found
    for transform, row in zip(found[:2], numbers, strict=False):
        assert transform.mean == pytest.approx(np.nanmean(row), rel=1e-12)
        assert transform.deviation == pytest.approx(np.nanstd(row), rel=1e-9)
    assert (found[2].mean, found[2].deviation) == (0.0, 1.0)
    assert not encode_dense(numbers, found)[:, 2].any()


def test_whole_numbers_get_the_logarithm_and_others_are_standardised() -> None:
    found = DenseStatistics(3)
    found.add(np.array([[1.0, 2.0, np.nan], [1.0, 2.5, 3.0], [np.nan] * 3]))
    assert [t.kind for t in found.transforms("auto", 1)] == ["log", "standard", "log"]
    assert {t.kind for t in found.transforms("log", 1)} == {"log"}
    assert {t.kind for t in found.transforms("standard", 1)} == {"standard"}


def test_one_extreme_number_does_not_leave_the_range() -> None:
    largest = float(np.finfo(np.float32).max)
    numbers = np.array([[0.0, 1.0, np.nan, largest, -largest]])
    features = encode_dense(numbers, [DenseTransform("standard", 2, 0.5, 0.5)])
    assert features[:, 0].tolist() == [-1.0, 1.0, 0.0, 100.0, -100.0]
    assert np.isfinite(encode_dense(numbers, [DenseTransform()])).all()


@pytest.mark.parametrize("number", [3.5, 0.1, 9.99, 123.456, -1e-3, 1e30, 0.0])
def test_a_column_of_one_number_is_constant(number: float) -> None:
    """Also one that float64 does not hold, whose sums are rounded."""
    numbers = np.full((1, 20_001), number)
    (transform,) = statistics(numbers, 5000)
    assert transform.deviation == 1.0
    assert not encode_dense(numbers, [transform]).any()
    assert encode_dense(np.array([[number + 0.5]]), [transform])[0, 0] in (0.0, pytest.approx(0.5))


def test_what_rounding_leaves_of_a_constant_is_no_deviation() -> None:
    (transform,) = statistics(np.array([[0.3, 0.1 + 0.2] * 20]), 40)
    assert transform.deviation == 1.0


def test_a_small_deviation_is_kept() -> None:
    (transform,) = statistics(np.array([[1e6, 1e6 + 1.0] * 20]), 40)
    assert transform.deviation == 0.5
    (transform,) = statistics(np.array([[1e-30, -1e-30] * 20]), 40)
    assert transform.deviation == pytest.approx(1e-30)
