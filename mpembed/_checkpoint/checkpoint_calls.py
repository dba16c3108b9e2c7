"""Checkpoints: the calls of a collection that write it to files and follow them."""

import os
from typing import Literal, overload

from mpembed._arguments import captures
from mpembed._arguments.scalars import boolean
from mpembed._checkpoint import applying, deltas
from mpembed._checkpoint.background import BackgroundSave
from mpembed._collection.base import CollectionBase
from mpembed.load_report import LoadReport


class CheckpointCalls(CollectionBase):
    """What saves a collection."""

    __slots__ = ()

    @overload
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        since: int | None = None,
        track: bool | None = None,
        background: Literal[False] = False,
    ) -> None: ...
    @overload
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        track: bool | None = None,
        background: Literal[True],
    ) -> BackgroundSave: ...
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        since: int | None = None,
        track: bool | None = None,
        background: bool = False,
    ) -> BackgroundSave | None:
        """Write everything to one file, or what has changed since an earlier save.

        A collection loaded from it continues bit for bit. The file is written beside the old one,
        synced to the disk, and takes its place when it is complete; a symbolic link is replaced,
        not followed.

        Parameters
        ----------
        path : path-like
            The file. Leftovers of killed saves to it are removed.
        since : int, optional
            The step of an earlier save: a delta is written, which `load` and `apply_delta` apply to
            that save. It holds the rows and cache slots that were written since, and the rest of
            the state. The save is one with ``track=True`` or a later one.
        track : bool, optional
            True: what is written from this save on is marked, a bit a row and a slot of a cache,
            until a save with False. None leaves it as it is.
        background : bool
            Return at once; a thread writes the file while training goes on. It holds what a save
            without it would have written at this moment. On the CPU only. A save to the same file
            waits for it, and so leaves the newer state there.

        Returns
        -------
        BackgroundSave or None
            With `background`: ``done`` says whether it has ended, ``result()`` waits for that and
            raises what went wrong, which the logger ``mpembed`` has too.

        Raises
        ------
        ValueError
            If no save at step `since` is known. Those since the last whole one are.
        OSError
            If it cannot be written, with `errno` and the file's name. What was there still is.
        RuntimeError
            With `background`, if such a save is going on already.
        """
        with self._calls.on_last_stream(captures.waits("save"), holds=True) as on:
            self._engine.raise_found(on)
            background = boolean("background", background)
            return deltas.save(self._state, path, since, track, on, background=background)

    @property
    def load_report(self) -> LoadReport | None:
        """What `load` kept, converted, started anew and dropped; None if it was not loaded.

        The logger ``mpembed`` has it too: as a warning where something started anew or was dropped.
        """
        return self._state.load_report

    def apply_delta(self, path: str | os.PathLike[str]) -> None:
        """Bring this collection to the state of a delta, which continues the state it is in.

        That is what was loaded, saved or applied last. The file is read and checked whole before
        anything changes; calls from other threads find the old state or the new one.

        Parameters
        ----------
        path : path-like
            A file that `save` wrote with `since`.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, is no delta, continues another save, or if the collection
            was trained since; nothing has changed then.
        """
        delta = applying.read(path)
        refuse = captures.waits("apply_delta")
        with self._calls.on_last_stream(refuse, changes=True, alone=True) as on:
            self._engine.raise_found(on)
            applying.apply(self._state, delta, on)
