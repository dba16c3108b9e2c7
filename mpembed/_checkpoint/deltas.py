"""Deltas: what has changed since a save, in a file that is applied to the state of that save."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._arguments.scalars import boolean, integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._checkpoint import loading, saving
from mpembed._checkpoint.background import BackgroundSave, save_in_background, wait_for_same_place
from mpembed._checkpoint.manifest import DELTA_FORMAT, DELTA_VERSION, identity
from mpembed._collection.records import StoredArray
from mpembed._collection.save_history import EndedSave, SaveHistory, SavePoint, numbers
from mpembed._collection.selection import SelectedArray
from mpembed._collection.state import CollectionState
from mpembed._collection.storage import leading_dimensions

Numbers = Mapping[str, npt.NDArray[np.int64]]


def save(
    state: CollectionState,
    path: str | os.PathLike[str],
    since: int | None,
    track: bool | None,
    on: Stream,
    *,
    background: bool = False,
) -> BackgroundSave | None:
    """Write a whole checkpoint, or a delta that continues the save at step `since`.

    `track` begins or ends to mark what is written from this save on. With `background` a thread
    writes the file.
    """
    if since is not None:
        since = integer("since", since, 0, contract.MAX_STEP)
        if background:
            raise ValueError("background=True is for whole saves: a delta is small, leave it out")
    if track is not None:
        track = boolean("track", track)
    if state.notice_foreign_writes(on) and since is not None:
        raise ValueError(
            f"since={since}: tensors of a state_dict() were written in place since that save, and "
            "no mark says which rows: save(path, track=True) first, which begins anew"
        )
    history = state.storage.saves
    if not background:
        wait_for_same_place(state, path)
    history.add_ended()
    history.remind()
    step, handle = state.counters(on).step, None
    entry = _Entry(history, step, on)
    begins = track is True and not history.tracking
    try:
        if begins:
            state.track_changes(on)
            history.start(step)
        if background:
            handle = _save_in_background(state, path, step, on)
        elif since is None:
            saving.save(state, path, on, entry)
            history.forget_before(step)
        else:
            _save_delta(state, path, since, on, entry)
    except BaseException:
        if begins and not entry.stands:
            history.stop(on)
            entry.withdraw()
        raise
    if track is False:
        history.stop(on)
    return handle


class _Entry:
    """A save in the history, if its file is in its place.

    Attributes
    ----------
    stands : bool
        Whether it is there.
    """

    def __init__(self, history: SaveHistory, step: int, on: Stream) -> None:
        self._history, self._step, self._on = history, step, on
        self._before = history.points
        self._identity = ""
        self.stands = False

    def announce(self, manifest: Mapping[str, Any]) -> None:
        """Add it."""
        self._identity, self.stands = identity(manifest), True
        self._history.saved(self._step, self._identity, self._on)

    def withdraw(self) -> None:
        """Take it back."""
        self.stands = False
        if not self._history.tracking:
            self._history.points = self._before
        elif self._identity:
            self._history.withdraw(self._step, self._identity)


def _save_in_background(
    state: CollectionState, path: str | os.PathLike[str], step: int, on: Stream
) -> BackgroundSave:
    """Start a whole save; deltas may continue it when it is written."""
    history = state.storage.saves
    state.refuse_second_snapshot()
    history.add_ended()  # all that have come so far: those to come are of the save below
    era = history.era

    def ended(manifest: dict[str, Any] | None) -> None:
        written = None if manifest is None else identity(manifest)
        history.ended.append(EndedSave(era, step, written))

    try:
        history.saved(step, None, on)
        return save_in_background(state, path, on, ended)
    except BaseException:
        other = state.storage.snapshot  # of this step, too: a signal's handler has started it
        if other is None or other.over:
            ended(None)
        raise


def _save_delta(
    state: CollectionState,
    path: str | os.PathLike[str],
    since: int,
    on: Stream,
    entry: saving.Entry,
) -> None:
    history = state.storage.saves
    point = history.point(since)
    _refuse_replacing(Path(path), [known for known in history.points if known.step <= since])
    changed = history.changed_since(since, on)
    found = {name: numbers(words) for name, words in changed.items()}
    changes = {
        "format": DELTA_FORMAT,
        "version": DELTA_VERSION,
        "since": {"step": since, "saves": point.identities},
    }
    saving.save(state, path, on, entry, selected(state.arrays(), found), changes)


def _refuse_replacing(target: Path, needed: Sequence[SavePoint]) -> None:
    """Raise ValueError where a delta would take the place of a save that it needs.

    That is the one that it continues, and those that this one continues.
    """
    try:
        with loading.opened(target, None) as (_, manifest):
            found = identity(manifest)
    except (OSError, ValueError):
        return  # nothing, or something else; what cannot be replaced is found when it is written
    for point in needed:
        if found in point.identities:
            raise ValueError(
                f"{target}: holds the save of step {point.step}, without which a delta from step "
                f"{needed[-1].step} may be of no use: save to another path"
            )


def selected(
    arrays: Mapping[str, StoredArray], changed: Numbers
) -> dict[str, StoredArray | SelectedArray]:
    """Return the arrays of a delta: of tables and slots, only what has changed, with its numbers.

    Parameters
    ----------
    arrays : dict of name -> StoredArray
        All arrays of a collection.
    changed : dict of name -> int64 array
        Row numbers of each ``table.{name}``, slot numbers of each ``cache.{label}``.
    """
    found: dict[str, StoredArray | SelectedArray] = {}
    for name, stored in arrays.items():
        owner, dimensions = name.rpartition(".")[0], leading_dimensions(name)
        if dimensions == 0:
            found[name] = stored
            continue
        found[f"{owner}.changed"] = StoredArray.of(changed[owner])
        found[name] = SelectedArray(stored, changed[owner], dimensions)
    return found
