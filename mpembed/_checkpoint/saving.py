"""Save: a new file takes the place of the old one when it is complete."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mpembed._bindings.device import Stream
from mpembed._checkpoint.manifest import manifest_of, metadata
from mpembed._checkpoint.tensor_file import Output, Writer
from mpembed._collection.records import StoredArray
from mpembed._collection.selection import SelectedArray
from mpembed._collection.state import CollectionState
from mpembed._files.replacement import ReplacementFile

Arrays = Mapping[str, StoredArray | SelectedArray]


class Entry(Protocol):
    """A save in a collection's history."""

    def announce(self, manifest: Mapping[str, Any]) -> None:
        """Add it, as its file is about to take its place."""

    def withdraw(self) -> None:
        """Take it back, whether it was added or not: the file has not taken its place."""


def save(
    state: CollectionState,
    path: str | os.PathLike[str],
    on: Stream,
    entry: Entry,
    arrays: Arrays | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write a collection to `path`; an existing file stays whole until the new one is complete.

    The file keeps its permissions, a new one gets those of any new file; a symbolic link is
    replaced.

    Parameters
    ----------
    state, path, on
        What, where, and the turn's stream.
    entry : Entry
        Is in the history just when the file is in its place, whatever comes in between.
    arrays : dict of name -> array, optional
        By default all that are state.
    changes : dict, optional
        Entries of the manifest that are others, or more.
    """
    file = ReplacementFile(path)
    try:
        with file:
            arrays = state.arrays() if arrays is None else arrays
            entry.announce(_write(state, file, on, arrays, changes or {}))
    except BaseException:
        if not file.in_place:
            entry.withdraw()
        raise


def _write(
    state: CollectionState,
    file: Output,
    on: Stream,
    arrays: Arrays,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    types = {name: (stored.dtype, stored.shape) for name, stored in arrays.items()}
    # Once: rates may change while the arrays are written.
    manifest = manifest_of(state, on) | dict(changes)
    checksums = dict.fromkeys(arrays, 2**32 - 1)  # the longest one
    writer = Writer(file, types, metadata(manifest, checksums))

    def pieces(name: str) -> Iterator[np.ndarray[Any, Any]]:
        stored = arrays[name]
        for begin, end in stored.pieces():
            yield state.without_pins(name, stored.read(begin, end, on))

    for name in writer.names:
        checksums[name] = writer.write(pieces(name))
    writer.finish(metadata(manifest, checksums))
    return {**manifest, "crc32": checksums}
