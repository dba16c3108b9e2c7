"""A deterministic generator of clicks in the shape of Criteo's, with a signal to learn.

Every number is a hash of a purpose and a row or id. A click thus depends on its row number alone,
not on its chunk, the machine or a library's random generator. The ids follow the skew of the real
columns. The label follows a logistic model that a DLRM can represent but has to learn: an effect
for each id, products of latent vectors of ids from two columns, and a few of the integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import (
    CRITEO_COLUMNS,
    MISSING_CAT,
    MISSING_INT,
    NUM_CATS,
    NUM_INTS,
    Clicks,
    Columns,
)
from mpembed.train.data.hashing import GOLDEN, U64, mix
from mpembed.train.data.synthetic_columns import (
    CAT_COLUMNS,
    INT_COLUMNS,
    INT_QUANTILES,
    MISSING_TOGETHER,
)

DEFAULT_ROWS = 250_000
#: Pairs of columns (from 0) whose latent vectors are multiplied: one with many ids, one with few.
PAIRS: tuple[tuple[int, int], ...] = (
    (1, 13),
    (3, 5),
    (6, 16),
    (9, 22),
    (10, 7),
    (12, 4),
    (14, 13),
    (17, 22),
    (23, 24),
    (25, 21),
)
#: Weights of the parts of the log odds, each of about unit variance, and a constant that makes
#: 25.6 % of the clicks positive.
MAIN, PAIR, DENSE, BIAS = 1.4, 0.9, 0.8, -1.351
LATENT = 4

_CHUNK_ROWS = 16_384
# Each purpose has a stream of hashes for each column.
_LABEL, _MISSING, _RANK, _VALUE, _EFFECT, _VECTOR, _INT_MISSING, _INT, _TOGETHER = range(9)

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@cache
def _key(purpose: int, column: int) -> np.uint64:
    return np.uint64(mix(np.array([1 + purpose * 64 + column], np.uint64) * GOLDEN)[0])


def _hash(counter: U64, purpose: int, column: int = 0) -> U64:
    return mix((counter + np.uint64(1)) * GOLDEN ^ _key(purpose, column))


def _uniform(counter: U64, purpose: int, column: int = 0) -> F64:
    bits = _hash(counter, purpose, column) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _fields(bits: U64) -> F64:
    """Return four independent numbers of mean 0 and variance 1 from each element's four fields."""
    words = np.ascontiguousarray(bits).astype("<u8").view("<u2").reshape(-1, 4)
    fields: F64 = (words.astype(np.float64) - 32767.5) * (np.sqrt(12.0) / 65536.0)
    return fields


@cache
def rank_law(column: int) -> tuple[I64, F64]:
    """Return the distribution of a column's ids by rank, in steps of equal probability.

    Parameters
    ----------
    column : int
        Categorical column, from 0.

    Returns
    -------
    edges : ndarray of int64, shape (k + 1,)
        Step `i` holds the ranks from ``edges[i]`` to ``edges[i + 1] - 1``.
    shares : ndarray of float64, shape (k + 1,)
        Cumulative share of the ranks below each edge.
    """
    figures = CAT_COLUMNS[column]
    edges, shares = [0], [0.0]
    points = ((0, 0.0), *figures.anchors, (figures.cardinality, 1.0))
    for (low, start), (high, end) in pairwise(points):
        span = np.log((high + 0.5) / (low + 0.5))
        while edges[-1] < high:
            edges.append(min(high, max(edges[-1] + 1, int(edges[-1] * 1.08))))
            part = float(np.log((edges[-1] + 0.5) / (low + 0.5)) / span)
            # Rounded, so that any library's logarithm gives the same steps.
            shares.append(round(start + (end - start) * part, 10))
    return np.array(edges, np.int64), np.array(shares, np.float64)


def _ranks(rows: U64, column: int) -> I64:
    """Draw the rank of each row's id; the cardinality itself where the value is missing."""
    edges, shares = rank_law(column)
    u = _uniform(rows, _RANK, column)
    step = np.searchsorted(shares, u, side="right") - 1
    within = (u - shares[step]) / (shares[step + 1] - shares[step])
    width = edges[step + 1] - edges[step]
    ranks: I64 = edges[step] + np.minimum((within * width).astype(np.int64), width - 1)
    ranks[_uniform(rows, *_missing_stream(column)) < CAT_COLUMNS[column].missing] = edges[-1]
    return ranks


def _missing_stream(column: int) -> tuple[int, int]:
    for group, columns in enumerate(MISSING_TOGETHER):
        if column in columns:
            return _TOGETHER, group
    return _MISSING, column


def _ints(rows: U64, column: int) -> tuple[I64, F64]:
    """Return the integers of a column and the uniform numbers they come from."""
    missing, quantiles = INT_COLUMNS[column]
    u = _uniform(rows, _INT, column)
    values = np.floor(np.interp(u, INT_QUANTILES, quantiles)).astype(np.int64)
    absent = _uniform(rows, _INT_MISSING, column) < missing
    values[absent] = MISSING_INT
    return values, np.where(absent, 0.0, u - 0.5) * np.sqrt(12.0)


def _log_odds(ranks: list[I64], dense: list[F64]) -> F64:
    """Add up the planted signal, term by term in a fixed order."""
    keys = [r.astype(np.uint64) for r in ranks]
    total = np.full(len(keys[0]), BIAS)
    for column, key in enumerate(keys):
        parts = _fields(_hash(key, _EFFECT, column))
        effect = (parts[:, 0] + parts[:, 1] + parts[:, 2] + parts[:, 3]) / 2.0
        total += effect * (MAIN / np.sqrt(NUM_CATS))
    for left, right in PAIRS:
        a = _fields(_hash(keys[left], _VECTOR, left))
        b = _fields(_hash(keys[right], _VECTOR, right))
        for k in range(LATENT):
            total += a[:, k] * b[:, k] * (PAIR / np.sqrt(LATENT * len(PAIRS)))
    for column in range(0, NUM_INTS, 2):
        sign = 1.0 if column % 4 else -1.0
        total += dense[column] * (sign * DENSE / np.sqrt(7.0))
    total += dense[1] * dense[7] * DENSE / 2.0
    return total


def log_odds(start: int, stop: int) -> F64:
    """Return the true log odds of clicks: what a perfect model would predict.

    Parameters
    ----------
    start, stop : int
        Range of row numbers.

    Returns
    -------
    ndarray of float64
        The log odds of each row.
    """
    rows = np.arange(start, stop, dtype=np.uint64)
    ranks = [_ranks(rows, c) for c in range(NUM_CATS)]
    return _log_odds(ranks, [_ints(rows, c)[1] for c in range(NUM_INTS)])


def generate(start: int, stop: int) -> Clicks:
    """Make the clicks of a range of rows.

    Parameters
    ----------
    start, stop : int
        Range of row numbers.

    Returns
    -------
    Clicks
        The clicks; a row is the same in every range that holds it.
    """
    rows = np.arange(start, stop, dtype=np.uint64)
    ranks = [_ranks(rows, c) for c in range(NUM_CATS)]
    ints = [_ints(rows, c) for c in range(NUM_INTS)]
    cats = np.empty((NUM_CATS, len(rows)), np.int64)
    for column, rank in enumerate(ranks):
        values = _hash(rank.astype(np.uint64), _VALUE, column) >> np.uint64(32)
        cats[column] = values.astype(np.int64)
        cats[column, rank == CAT_COLUMNS[column].cardinality] = MISSING_CAT
    odds = 1.0 / (1.0 + np.exp(-_log_odds(ranks, [signal for _, signal in ints])))
    labels = (_uniform(rows, _LABEL) < odds).astype(np.int64)
    return Clicks(labels, np.stack([values for values, _ in ints]), cats)


class SyntheticSource:
    """The generator as a source of clicks.

    Parameters
    ----------
    rows : int
        Number of clicks.
    """

    def __init__(self, rows: int = DEFAULT_ROWS) -> None:
        self._rows = rows

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return self._rows

    @property
    def columns(self) -> Columns:
        """What the columns are."""
        return CRITEO_COLUMNS

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks."""
        for start in range(0, stop, _CHUNK_ROWS):
            yield generate(start, min(start + _CHUNK_ROWS, stop))

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        return {"source": "synthetic", "rows": self._rows}
