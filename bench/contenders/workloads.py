"""Tables, index streams and optimizers of the comparisons."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import mpembed as mpe

Array = np.ndarray[Any, Any]
Step = Callable[[int], Any]  # runs batch i
OPTIMIZERS = mpe.optim.OPTIMIZERS
PRECISIONS = ["fp32", "fp16", "int8", "int4"]  # those that a peer has too
BETWEEN = ["int6", "int5"]  # those that none has, between two that it has
DISTRIBUTIONS = ["uniform", "zipf1.05"]
BATCHES = 32  # together more rows than a processor's cache holds: repeating them does not help
FRESH = BATCHES - 2  # rounds in which no batch comes twice; two batches warm up
LR = 0.01


def has_fbgemm() -> bool:
    """Whether FBGEMM's package can be imported."""
    return importlib.util.find_spec("fbgemm_gpu") is not None


@dataclass(frozen=True)
class Shape:
    """Tables of one size, and a batch of them."""

    tables: int
    rows: int
    dim: int
    pool: int
    bags: int = 2048

    @property
    def lookups(self) -> int:
        """Indices of a batch."""
        return self.tables * self.bags * self.pool

    @property
    def offsets(self) -> Array:
        """Offsets of a batch, table-major."""
        return np.arange(0, self.lookups + 1, self.pool)

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.tables * self.dim

    def smaller(self, divisor: int) -> Shape:
        """Return the same with fewer rows."""
        return Shape(self.tables, self.rows // divisor, self.dim, self.pool, self.bags)


SHAPES = {
    "4Mx64": Shape(1, 4_000_000, 64, 20),
    "2Mx128": Shape(1, 2_000_000, 128, 20),
    "8x1.25Mx16": Shape(8, 1_250_000, 16, 1),
}


@dataclass(frozen=True)
class Stream:
    """Batches of indices, all of one shape."""

    shape: Shape
    batches: list[Array]  # table-major rows of each table

    def at(self, i: int) -> Array:
        """Return batch i, over and over."""
        return self.batches[i % len(self.batches)]

    @functools.cached_property
    def linear(self) -> list[Array]:
        """The same rows, numbered through all tables."""
        each = self.shape.bags * self.shape.pool
        base = np.repeat(np.arange(self.shape.tables) * self.shape.rows, each)
        return [x + base for x in self.batches]


@functools.lru_cache(maxsize=2)
def _zipf(rows: int, exponent: float) -> tuple[Array, Array]:
    """Return the cumulative weights of the ranks, and the row of each rank."""
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights) / weights.sum(), np.random.default_rng(0).permutation(rows)


def draw(rng: np.random.Generator, distribution: str, rows: int, n: int) -> Array:
    """Return n rows: "uniform", "distinct", "half" of them one row, or "zipf" and an exponent."""
    if distribution.startswith("zipf"):
        cumulative, row_of = _zipf(rows, float(distribution.removeprefix("zipf")))
        ranks = np.searchsorted(cumulative, rng.random(n))
        return np.asarray(row_of[np.minimum(ranks, rows - 1)])
    if distribution == "distinct":
        return rng.choice(rows, n, replace=False)
    drawn = rng.integers(0, rows, n)
    if distribution == "half":
        drawn[rng.permutation(n)[: n // 2]] = rows // 2
    return drawn


@functools.lru_cache(maxsize=4)
def stream(shape: Shape, distribution: str, seed: int = 0, count: int = BATCHES) -> Stream:
    """Return batches; the seed changes the draws, not which rows are frequent."""
    rng = np.random.default_rng([7, seed])
    return Stream(shape, [draw(rng, distribution, shape.rows, shape.lookups) for _ in range(count)])


def gradient(shape: Shape) -> Array:
    """Return an output gradient."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((shape.bags, shape.width)).astype(np.float32)
