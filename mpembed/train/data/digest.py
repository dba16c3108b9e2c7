"""A digest of all clicks of a source, taken as they pass by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpembed.train.data.clicks import Bags, Clicks, Columns, Source


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
        found = hashlib.blake2b(digest_size=16)
        for chunk in self._source.chunks(stop):
            arrays: list[Any] = [chunk.labels, chunk.dense, *chunk.values()]
            arrays += [one.offsets for one in chunk.cats if isinstance(one, Bags)]
            for array in arrays:
                found.update(np.ascontiguousarray(array).data)
            yield chunk
        self._digest = found.hexdigest()
