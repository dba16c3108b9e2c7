"""Raw clicks in chunks, and how to cut a stream of them into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

NUM_INTS = 13
NUM_CATS = 26
#: Stands for a missing integer. No file may hold it: its magnitude must be below 2**63.
MISSING_INT = int(np.iinfo(np.int64).min)
#: Stands for a missing categorical; the others are unsigned 32-bit values.
MISSING_CAT = -1

IntArray = npt.NDArray[np.int64]


class DataError(ValueError):
    """The click data cannot be used; the message names the file and any bad line."""


@dataclass(frozen=True)
class Clicks:
    """Raw clicks; each column of the data is one row of an array.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        1 where the advertisement was clicked, else 0.
    ints : ndarray of int64, shape (13, n)
        The integers, ``MISSING_INT`` where missing.
    cats : ndarray of int64, shape (26, n)
        The categoricals as numbers below 2**32, ``MISSING_CAT`` where missing.
    """

    labels: IntArray
    ints: IntArray
    cats: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Clicks:
        return Clicks(self.labels[rows], self.ints[:, rows], self.cats[:, rows])


class Source(Protocol):
    """Anything that yields the same clicks in the same order every time."""

    @property
    def rows(self) -> int:
        """Number of clicks."""

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks in chunks of any length."""

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""


def _join(parts: Sequence[Clicks]) -> Clicks:
    if len(parts) == 1:
        return parts[0]
    return Clicks(
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.ints for p in parts], axis=1),
        np.concatenate([p.cats for p in parts], axis=1),
    )


def reblock(chunks: Iterator[Clicks], lengths: Iterator[int]) -> Iterator[Clicks]:
    """Cut a stream into blocks of the given lengths; its chunks may have any length.

    Parameters
    ----------
    chunks : iterator of Clicks
        The stream; it must hold at least as many clicks as all blocks together.
    lengths : iterator of int
        Length of each block, each at least 1.

    Yields
    ------
    Clicks
        The blocks, in order.
    """
    rest: Clicks | None = None
    for length in lengths:
        parts: list[Clicks] = []
        missing = length
        while missing:
            chunk = rest if rest is not None else next(chunks)
            parts.append(chunk[:missing])
            rest = chunk[missing:] if len(chunk) > missing else None
            missing -= len(parts[-1])
        yield _join(parts)
