"""A digest of all clicks of a source, taken as they pass by.

It is that of the columns' own digests, so it does not depend on how the rows are cut into chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import Clicks, Columns, Source


class DigestedSource:
    """A source that digests its clicks the first time that all of them are read.

    Parameters
    ----------
    source : Source
        Raw clicks.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._digest: str | None = None

    @property
    def rows(self) -> int:
        """Number of clicks."""
        return self._source.rows

    @property
    def columns(self) -> Columns:
        """What the columns are."""
        return self._source.columns

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        return self._source.describe()

    @property
    def digest(self) -> str:
        """The digest; RuntimeError before all clicks have been read once."""
        if self._digest is None:
            raise RuntimeError("not all clicks have been read")
        return self._digest

    def chunks(self, stop: int) -> Iterator[Clicks]:
        """Yield the first `stop` clicks in chunks of any length."""
        if self._digest is not None or stop < self.rows:
            yield from self._source.chunks(stop)
            return
        found: list[Any] = []
        for chunk in self._source.chunks(stop):
            for column, array in enumerate(_arrays(chunk)):
                if column == len(found):
                    found.append(hashlib.blake2b(digest_size=16))
                found[column].update(np.ascontiguousarray(array).data)
            yield chunk
        self._digest = hashlib.blake2b(
            b"".join(one.digest() for one in found), digest_size=16
        ).hexdigest()


def _arrays(chunk: Clicks) -> Iterator[npt.NDArray[Any]]:
    """Yield arrays that join to those of all clicks."""
    yield chunk.labels
    for row in chunk.dense:
        # A missing number has many patterns of bits.
        yield np.where(np.isnan(row), np.nan, row) if row.dtype == np.float64 else row
    yield from chunk.values()
    yield from (np.diff(one.offsets) for one in chunk.bags)
