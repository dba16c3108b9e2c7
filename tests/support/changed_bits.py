"""Changed bits of a collection: where it begins to track them, and what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.collection import collection_state


def track(emb: Any) -> None:
    """Begin to track, or forget what has changed so far."""
    state = collection_state(getattr(emb, "emb", emb))
    with state.writing() as on:
        state.track_changes(on)


def changed(emb: Any) -> dict[str, npt.NDArray[np.uint32]]:
    """Return the bitmaps of what has changed."""
    state = collection_state(getattr(emb, "emb", emb))
    with state.reading() as on:
        return state.storage.changes.read(on)


def stop_tracking(emb: Any) -> None:
    """Return to a collection without bitmaps."""
    state = collection_state(getattr(emb, "emb", emb))
    with state.writing() as on:
        state.storage.changes.stop(on)
