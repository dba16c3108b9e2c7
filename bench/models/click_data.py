"""Synthetic clicks for the libraries that bring no data: fields, dense values, a history."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Rows of each field's table.
FIELDS = {"user": 200, "item": 300, "category": 20, "hour": 24, "device": 10, "site": 60}
DENSE = 2
HISTORY = 6  # items at most; item 0 is padding
TRAIN, TEST = 2048, 1024


@dataclass(frozen=True)
class Clicks:
    """Samples: one column a field, dense values, items seen before, two labels."""

    fields: NDArray[np.int64]
    dense: NDArray[np.float32]
    history: NDArray[np.int64]
    not_clicked: NDArray[np.int64]  # of the same shape as the history
    lengths: NDArray[np.int64]
    labels: NDArray[np.float32]

    def part(self, chosen: slice) -> Clicks:
        """Return some of the samples."""
        return Clicks(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @property
    def train(self) -> Clicks:
        """The samples for training."""
        return self.part(slice(0, TRAIN))

    @property
    def test(self) -> Clicks:
        """The others."""
        return self.part(slice(TRAIN, TRAIN + TEST))


@lru_cache(maxsize=1)
def clicks() -> Clicks:
    """Return samples whose labels follow hidden vectors and weights of users, items and sites."""
    drawn = np.random.default_rng(7)
    n = TRAIN + TEST
    # The square of a uniform number: some rows are frequent.
    fields = np.stack(
        [(drawn.random(n) ** 2 * (size - 1)).astype(np.int64) + 1 for size in FIELDS.values()], 1
    )
    dense = drawn.random((n, DENSE), dtype=np.float32)
    lengths = drawn.integers(1, HISTORY + 1, n)
    kept = np.arange(HISTORY) < lengths[:, None]
    history = np.where(kept, drawn.integers(1, FIELDS["item"], (n, HISTORY)), 0)
    others = np.where(kept, drawn.integers(1, FIELDS["item"], (n, HISTORY)), 0)
    hidden = {name: drawn.standard_normal((size, 4)) for name, size in FIELDS.items()}
    user, item, site = (
        hidden[name][fields[:, list(FIELDS).index(name)]] for name in ("user", "item", "site")
    )
    logit = (user + item + site).sum(1) + (user * item).sum(1) / 2 + dense[:, 0] - 0.5
    labels = np.stack([logit, logit - 1.0], 1) + drawn.logistic(size=(n, 2)) > 0
    return Clicks(fields, dense, history, others, lengths, labels.astype(np.float32))
