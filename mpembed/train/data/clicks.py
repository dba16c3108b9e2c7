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
#: Stands for a missing categorical; the keys of all others are not negative.
MISSING_CAT = -1
#: Stands for the label of a click whose source has none.
MISSING_LABEL = -1

IntArray = npt.NDArray[np.int64]
NumberArray = npt.NDArray[np.int64] | npt.NDArray[np.float64]


class DataError(ValueError):
    """The click data cannot be used; the message names the file and any bad line."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a source are.

    Attributes
    ----------
    dense, categorical : tuple of str
        Their names, in order.
    label : str
        Name of the label's column.
    bags : bool
        Whether a categorical may hold several values in a row.
    names : tuple of str
        All columns of the file, chosen or not; empty for Criteo's format, which has no choice.
    header : bool
        Whether a text file has the names in its first line; if not, names are positions.
    """

    dense: tuple[str, ...]
    categorical: tuple[str, ...]
    label: str = "label"
    bags: bool = False
    names: tuple[str, ...] = ()
    header: bool = False


CRITEO_COLUMNS = Columns(
    tuple(f"I{i + 1}" for i in range(NUM_INTS)), tuple(f"C{i + 1}" for i in range(NUM_CATS))
)


@dataclass(frozen=True)
class Bags:
    """A categorical column that may hold several values in a row.

    Attributes
    ----------
    values : ndarray of int64, shape (m,)
        Keys of the values, ``MISSING_CAT`` where missing.
    offsets : ndarray of int64, shape (n + 1,)
        Row `i` holds ``values[offsets[i]:offsets[i + 1]]``; the first offset is 0.
    """

    values: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> Bags:
        start, stop, _ = rows.indices(len(self))
        offsets = self.offsets[start : stop + 1]
        return Bags(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _join_bags(parts: Sequence[Bags]) -> Bags:
    offsets = [np.zeros(1, np.int64)]
    for part in parts:
        offsets.append(part.offsets[1:] + offsets[-1][-1])
    return Bags(np.concatenate([p.values for p in parts]), np.concatenate(offsets))


@dataclass(frozen=True)
class Clicks:
    """Raw clicks; each column of the data is one row of an array.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        1 where the advertisement was clicked, else 0; ``MISSING_LABEL`` where the source has none.
    dense : ndarray of int64 or float64, shape (D, n)
        The numbers; ``MISSING_INT`` or NaN where missing.
    cats : ndarray of int64, shape (C, n)
        Keys of the categoricals, ``MISSING_CAT`` where missing. In Criteo's format they are numbers
        below 2**32, and there are 13 numbers and 26 categoricals.
    bags : tuple of Bags
        The categoricals where they may hold several values in a row; `cats` has no rows then.
    """

    labels: IntArray
    dense: NumberArray
    cats: IntArray
    bags: tuple[Bags, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Clicks:
        bags = tuple(one[rows] for one in self.bags)
        return Clicks(self.labels[rows], self.dense[:, rows], self.cats[:, rows], bags)

    def values(self) -> Sequence[IntArray]:
        """Return the keys of each categorical column."""
        return [one.values for one in self.bags] or list(self.cats)


class Source(Protocol):
    """Anything that yields the same clicks in the same order every time."""

    @property
    def rows(self) -> int:
        """Number of clicks."""

    @property
    def columns(self) -> Columns:
        """What the columns are."""

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks in chunks of any length."""

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""


def _join(parts: Sequence[Clicks]) -> Clicks:
    if len(parts) == 1:
        return parts[0]
    return Clicks(
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.dense for p in parts], axis=1),
        np.concatenate([p.cats for p in parts], axis=1),
        tuple(_join_bags(column) for column in zip(*(p.bags for p in parts), strict=True)),
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
