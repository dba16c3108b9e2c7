"""Numbers as features: logarithms, or distances from the mean in standard deviations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import MISSING_INT, NumberArray

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
# One number out of all proportion would undo what has been learnt.
_MAX_DEVIATIONS = 100.0
# In units of the mean; less is what rounding leaves of a column that is constant.
_LEAST_DEVIATION = 1e-12
# Sums depend on where the rows are cut, so they are always cut here.
_STATISTICS_ROWS = 8192


def as_floats(numbers: NumberArray) -> F64:
    """Return numbers as float64, NaN where missing."""
    floats: F64 = numbers.astype(np.float64, copy=False)
    return floats if floats is numbers else np.where(numbers == MISSING_INT, np.nan, floats)


def dense_features(numbers: NumberArray, shift: int) -> F32:
    """Take logarithms of numbers.

    Parameters
    ----------
    numbers : ndarray of int64 or float64, shape (D, n)
        Raw numbers, ``MISSING_INT`` or NaN where missing.
    shift : int
        2 for ``log(x + 2)`` of x no less than -1; 1 for ``log(x + 1)`` of x no less than 0.

    Returns
    -------
    ndarray of float32, shape (n, D)
        The features, 0 where the number is missing.
    """
    values = np.fmax(as_floats(numbers), 1 - shift)  # of NaN and a number, it takes the number
    return np.ascontiguousarray(np.log(values + shift).T.astype(np.float32))


@dataclass(frozen=True)
class DenseTransform:
    """How the numbers of one column become features.

    Attributes
    ----------
    kind : str
        "log" for :func:`dense_features`, "standard" for ``(x - mean) / deviation``, at most 100
        either way; a missing number gives 0 in both.
    shift : int
        That of the logarithm.
    mean, deviation : float
        Those of the training part.
    """

    kind: str = "log"
    shift: int = 2
    mean: float = 0.0
    deviation: float = 1.0


def encode_dense(numbers: NumberArray, transforms: Sequence[DenseTransform]) -> F32:
    """Turn numbers into features.

    Parameters
    ----------
    numbers : ndarray of int64 or float64, shape (D, n)
        Raw numbers.
    transforms : sequence of DenseTransform
        One a column.

    Returns
    -------
    ndarray of float32, shape (n, max(D, 1))
        The features. A source without numbers has one feature that is always 1, so that the
        perceptron below the dot products has an input.
    """
    if not transforms:
        return np.ones((numbers.shape[1], 1), np.float32)
    if all(t == transforms[0] for t in transforms) and transforms[0].kind == "log":
        return dense_features(numbers, transforms[0].shift)
    features = np.empty((numbers.shape[1], len(transforms)), np.float32)
    for column, one in enumerate(transforms):
        row = numbers[column : column + 1]
        if one.kind == "log":
            features[:, column] = dense_features(row, one.shift)[:, 0]
        else:
            standard = (as_floats(row)[0] - one.mean) / one.deviation
            limited = np.clip(standard, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)
            features[:, column] = np.where(np.isnan(limited), 0.0, limited)
    return features


class DenseStatistics:
    """Mean and variance of the numbers of each column, and whether all are whole numbers.

    The result does not depend on how the rows are cut into chunks.

    Parameters
    ----------
    columns : int
        Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self.fractional = np.zeros(columns, bool)
        self._count = np.zeros(columns)
        self._mean = np.zeros(columns)
        self._square = np.zeros(columns)  # the sum of squared distances from the mean
        self._lowest = np.full(columns, np.inf)
        self._highest = np.full(columns, -np.inf)
        self._pending: list[F64] = []
        self._rows = 0

    def add(self, numbers: F64) -> None:
        """Take the next rows.

        Parameters
        ----------
        numbers : ndarray of float64, shape (D, n)
            Raw numbers, NaN where missing.
        """
        self.fractional |= (numbers != np.floor(numbers)).any(axis=1, where=~np.isnan(numbers))
        self._pending.append(numbers)
        self._rows += numbers.shape[1]
        if self._rows >= _STATISTICS_ROWS:
            self._merge_pending(self._rows // _STATISTICS_ROWS * _STATISTICS_ROWS)

    def _merge_pending(self, rows: int) -> None:
        joined = np.concatenate(self._pending, axis=1)
        for start in range(0, rows, _STATISTICS_ROWS):
            stop = min(start + _STATISTICS_ROWS, rows)
            self._merge(np.ascontiguousarray(joined[:, start:stop]))
        # A view would hold the memory of all.
        self._pending, self._rows = [joined[:, rows:].copy()], joined.shape[1] - rows

    def _merge(self, numbers: F64) -> None:
        present = ~np.isnan(numbers)
        count = present.sum(axis=1).astype(np.float64)
        divisor = np.maximum(count, 1.0)
        mean = np.where(present, numbers, 0.0).sum(axis=1) / divisor
        square = np.where(present, (numbers - mean[:, None]) ** 2, 0.0).sum(axis=1)
        total = np.maximum(self._count + count, 1.0)
        step = mean - self._mean
        self._square += square + step**2 * (self._count * count / total)
        self._mean += step * (count / total)
        self._count += count
        self._lowest = np.minimum(self._lowest, np.where(present, numbers, np.inf).min(axis=1))
        self._highest = np.maximum(self._highest, np.where(present, numbers, -np.inf).max(axis=1))

    def _measured(self) -> Iterator[tuple[float, float]]:
        """Yield mean and deviation of each column; 1 for a deviation that is but rounding."""
        deviations = np.sqrt(self._square / np.maximum(self._count, 1.0))
        # A constant is its own mean to the last bit, which sums do not give.
        means = np.where(self._lowest == self._highest, self._lowest, self._mean)
        least = _LEAST_DEVIATION * np.abs(means)
        safe = np.where(deviations <= least, np.maximum(least, 1.0), deviations)
        safe[self._lowest >= self._highest] = 1.0
        yield from zip(means.tolist(), safe.tolist(), strict=True)

    def transforms(self, choice: str, shift: int) -> list[DenseTransform]:
        """Choose how each column becomes a feature.

        Parameters
        ----------
        choice : str
            "log", "standard", or "auto": the logarithm where all numbers are whole.
        shift : int
            That of the logarithm.

        Returns
        -------
        list of DenseTransform
            One a column.
        """
        if self._rows:
            self._merge_pending(self._rows)
        return [
            DenseTransform("standard", shift, mean, deviation)
            if choice == "standard" or (choice == "auto" and fractional)
            else DenseTransform("log", shift)
            for fractional, (mean, deviation) in zip(self.fractional, self._measured(), strict=True)
        ]
