"""Tables of several ranks, looked up as one collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.collection import EmbeddingBagCollection
from mpembed.config import TableConfig

I32 = npt.NDArray[np.int32]


class JoinedTables:
    """Collections whose tables together are those of a model.

    Parameters
    ----------
    parts : sequence of EmbeddingBagCollection
        Each with some of the tables, all of one dimension.
    names : sequence of str
        All tables, in the order of the output's columns.
    """

    def __init__(self, parts: Sequence[EmbeddingBagCollection], names: Sequence[str]) -> None:
        self._parts = parts
        configs = {table.name: table for part in parts for table in part.tables}
        self.tables: Sequence[TableConfig] = [configs[name] for name in names]
        place = {name: number for number, name in enumerate(names)}
        self._places = [[place[table.name] for table in part.tables] for part in parts]

    def forward(self, indices: I32, offsets: I32, *, training: bool) -> Any:
        """Look up a batch, as ``EmbeddingBagCollection.forward`` does; it cannot be trained."""
        bags = (len(offsets) - 1) // len(self.tables)
        out = np.empty((bags, len(self.tables), self.tables[0].embedding_dim), np.float32)
        for part, places in zip(self._parts, self._places, strict=True):
            starts = [offsets[t * bags : (t + 1) * bags + 1] for t in places]
            own = np.concatenate([indices[one[0] : one[-1]] for one in starts])
            lengths = np.concatenate([np.diff(one) for one in starts])
            cut = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            found: Any = part.forward(own, cut, training=training)
            out[:, places] = np.asarray(found).reshape(bags, len(places), -1)
        return out.reshape(bags, -1)
