"""Who met which item, when, and how it was liked: what three of the four models train on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class DataError(ValueError):
    """The data cannot be used; the message names the way out."""


@dataclass(frozen=True)
class Events:
    """Interactions, sorted by user (or session) and then by time.

    Attributes
    ----------
    name : str
        What the report calls the data.
    user, item : ndarray of int64
        Numbers from 0, without gaps.
    time : ndarray of float64
        Any unit.
    rating : ndarray of float32, optional
        None where the file has none.
    """

    name: str
    user: I64
    item: I64
    time: npt.NDArray[np.float64]
    rating: F32 | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def num_users(self) -> int:
        return int(self.user.max()) + 1 if len(self) else 0

    @property
    def num_items(self) -> int:
        return int(self.item.max()) + 1 if len(self) else 0

    def starts(self) -> I64:
        """Return where each user's events begin, and the number of events."""
        return np.searchsorted(self.user, np.arange(self.num_users + 1)).astype(np.int64)

    def frequent(self, item_events: int, user_events: int) -> Events:
        """Return the events of items and users that have enough of them, both at once."""
        kept = self
        while len(kept):
            enough = np.bincount(kept.item)[kept.item] >= item_events
            enough &= np.bincount(kept.user)[kept.user] >= user_events
            if enough.all():
                return kept
            kept = kept._subset(enough)
        raise DataError(
            f"{self.name}: no items have {item_events} events of users with {user_events}; "
            "use a larger file"
        )

    def _subset(self, chosen: npt.NDArray[np.bool_]) -> Events:
        rating = None if self.rating is None else self.rating[chosen]
        fewer = replace(
            self,
            user=self.user[chosen],
            item=self.item[chosen],
            time=self.time[chosen],
            rating=rating,
        )
        return fewer.renumbered()

    def renumbered(self) -> Events:
        """Return the events with users and items numbered from 0, sorted by user and time."""
        user = np.unique(self.user, return_inverse=True)[1].reshape(-1).astype(np.int64)
        item = np.unique(self.item, return_inverse=True)[1].reshape(-1).astype(np.int64)
        order = np.lexsort((self.time, user))
        rating = None if self.rating is None else self.rating[order]
        return Events(self.name, user[order], item[order], self.time[order], rating)
