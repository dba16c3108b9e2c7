"""Values that a model does not know, counted while it scores; they may be spelt otherwise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mpembed.train.data.encoding import Block, Encoding
from mpembed.train.data.selection import show_names
from mpembed.train.data.vocabulary import MISSING_ROW, RARE_ROW

_SHARE = 0.9
# Of fewer values nothing can be said.
_FEW = 10


class UnknownValues:
    """Counts the values of each column without a row of their own.

    Parameters
    ----------
    encoding : Encoding
        What the model knows.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._names = encoding.columns.categorical
        self._unknown = np.zeros(len(self._names), np.int64)
        self._values = np.zeros(len(self._names), np.int64)

    def add(self, block: Block) -> None:
        """Count those of one more block; missing values do not count."""
        if block.offsets is None:
            columns = list(block.ids)
        else:
            ends = block.offsets[:: max(len(block), 1)].tolist()
            columns = [block.ids[a:b] for a, b in pairwise(ends)]
        for column, ids in enumerate(columns):
            self._unknown[column] += np.count_nonzero(ids == RARE_ROW)
            self._values[column] += np.count_nonzero(ids != MISSING_ROW)

    def note(self) -> str:
        """Return what is to be said of columns of which the model knows next to nothing; or ""."""
        counts = zip(self._names, self._unknown.tolist(), self._values.tolist(), strict=True)
        shown = [
            f"{name!r} ({unknown:,} of {values:,})"
            for name, unknown, values in counts
            if values >= _FEW and unknown >= _SHARE * values
        ]
        if not shown:
            return ""
        return (
            f"{'column' if len(shown) == 1 else 'columns'} {show_names(shown)}: the model knows "
            "few of the values or none; a value is its text, so 'True' is not 'true', and '3.0' "
            "in CSV is not 3"
        )
