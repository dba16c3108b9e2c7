"""The state of a collection at one moment, read while training goes on.

Small arrays are copied at once. Rows of tables and caches are read in chunks; the kernels keep what
a row was before they first write it (``mpembed/preimages.h``), and what they kept takes its place.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings.preimages import PreimageLog, Preimages
from mpembed._collection.batch_rows import BatchRows
from mpembed._collection.changes import WrittenGroup
from mpembed._collection.records import StoredArray

Bytes = npt.NDArray[np.uint8]
_CHUNK = 1 << 22  # bytes of rows that are read at a time
_SHARE = 4  # what is kept may take this part of what the rows take,
_LEAST = 1 << 26  # or this many bytes where that is more
_AHEAD = 1 << 26  # the most memory that is ready before it is needed


@dataclass(frozen=True)
class _Part:
    """An array whose rows are read with others: bytes [begin, end) of one span of each row."""

    name: str
    span: int
    begin: int
    end: int


class ProtectedRows:
    """Rows that can be read as they were, and the arrays that lie in them.

    Parameters
    ----------
    arrays : dict of str -> StoredArray
        The arrays; those of one memory are parts of one span.
    count : int
        Rows.
    """

    def __init__(self, arrays: Mapping[str, StoredArray], count: int) -> None:
        self.spans: list[Bytes] = []
        self.parts: list[_Part] = []
        numbers: dict[int, int] = {}
        for name, stored in arrays.items():
            number = numbers.setdefault(id(stored.memory), len(self.spans))
            if number == len(self.spans):
                memory = np.asarray(stored.memory).reshape(-1).view(np.uint8)
                self.spans.append(memory.reshape(count, memory.size // max(1, count)))
            width = stored.nbytes // max(1, count)
            self.parts.append(_Part(name, number, stored.offset, stored.offset + width))
        self.row_bytes = sum(span.shape[1] for span in self.spans)
        self.count = count

    def keep(self, log: PreimageLog) -> Preimages:
        """Return what kernels need to keep them in a log."""
        chunk = max(32, _CHUNK // max(1, self.row_bytes) // 32 * 32)
        return Preimages(log, self.spans, chunk)

    def pieces(self, images: Preimages) -> Iterator[tuple[str, int, Bytes]]:
        """Yield the arrays in pieces: the name, the first byte's place, and the bytes.

        A piece is valid until the next one.
        """
        rows = images.chunk_rows
        outs = [np.empty((rows, span.shape[1]), np.uint8) for span in self.spans]
        for chunk, begin in enumerate(range(0, self.count, rows)):
            images.read(chunk, outs)
            for part in self.parts:
                columns = outs[part.span][: self.count - begin, part.begin : part.end]
                place = begin * (part.end - part.begin)
                yield part.name, place, np.ascontiguousarray(columns).reshape(-1)


class Snapshot:
    """All arrays of a collection as they were when this was attached.

    One thread reads `pieces`; the collection's calls go on meanwhile and call `make_room` first. It
    is over when all was read, or when the reader has given up.

    Parameters
    ----------
    groups : sequence of WrittenGroup
        What the kernels write.
    arrays : mapping of str -> StoredArray
        All arrays.
    copies : mapping of str -> numpy.ndarray
        Copies of those that are in no row and no slot.

    Attributes
    ----------
    place : tuple or None
        The file that the reader writes.
    """

    place: tuple[int, int, str] | None = None

    def __init__(
        self,
        groups: Sequence[WrittenGroup],
        arrays: Mapping[str, StoredArray],
        copies: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        self._copies, self._groups = copies, groups
        owned: dict[str, dict[str, StoredArray]] = {}
        for name, stored in arrays.items():
            if name not in copies:
                owned.setdefault(name.rpartition(".")[0], {})[name] = stored
        counts = {name: n for group in groups for name, n in group.counts().items()}
        self._rows = {owner: ProtectedRows(own, counts[owner]) for owner, own in owned.items()}
        self._log = PreimageLog()
        self._images = {owner: rows.keep(self._log) for owner, rows in self._rows.items()}
        total = sum(images.num_rows * images.entry_bytes for images in self._images.values())
        self._capacity = min(total, max(_LEAST, total // _SHARE))
        self._keeps_all = self._capacity == total
        self._log.reserve(self._capacity)
        self._ahead = min(_AHEAD, self._capacity // 8)
        # The most that one row of a batch makes a call keep: a row and a slot of its group.
        self._entry_bytes = max((self._group_entry_bytes(group) for group in groups), default=0)
        self._log.populate(self._ahead // 4)
        self._over = threading.Event()
        self._attached = self._gives_way = False
        _snapshots.add(self)

    def _group_entry_bytes(self, group: WrittenGroup) -> int:
        tables = max((self._images[name].entry_bytes for name in group.tables), default=0)
        return tables + (0 if group.slots is None else self._images[group.cache].entry_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes in use: of the copies, and of the rows that the kernels have kept."""
        kept = self._log.nbytes + sum(images.nbytes for images in self._images.values())
        return kept + sum(copy.nbytes for copy in self._copies.values())

    @property
    def over(self) -> bool:
        """Whether nothing more is read."""
        return self._over.is_set()

    def attach(self) -> None:
        """Let the kernels keep what they change from now on."""
        self._attached = True
        for group in self._groups:
            tables: list[Preimages | None] = [self._images[name] for name in group.tables]
            group.kernels.set_preimages(tables, self._images.get(group.cache))

    def detach(self) -> None:
        """Let them keep nothing more; a reader that has not finished gets an error."""
        for group in self._groups:
            nothing: list[Preimages | None] = [None] * len(group.tables)
            if not self._gives_way:  # no handler of a signal comes between these two
                group.kernels.set_preimages(nothing, None)
        self._attached = False
        self.finish()

    def give_way(self) -> bool:
        """Let another snapshot take the place of this one; only where this one is over."""
        self._gives_way = self.over
        return self._gives_way

    def finish(self) -> None:
        """Read nothing more; any thread may call this."""
        self._over.set()

    def make_room(self, rows: int, find: Callable[[], BatchRows | None] | None = None) -> None:
        """Wait for the reader if a call that writes so many rows could fill the log.

        The call has not changed anything yet. Where the number alone says that it could, `find`
        says which rows they are: some may be the same, and some be kept or read already.
        """
        if self.has_room(rows) or self._fits(self._left()):
            return
        found = None if find is None else find()
        if found is None or not self._fits(sum(self._most(one, found) for one in self._groups)):
            self._over.wait()

    def keep(self, name: str, rows: npt.NDArray[np.int64]) -> None:
        """Keep rows of a table or slots of a cache for who writes them without the kernels.

        After `make_room` for as many.
        """
        self._images[name].keep(np.ascontiguousarray(rows, np.int64))

    def has_room(self, rows: int) -> bool:
        """Whether a call that writes so many rows cannot fill the log."""
        return self._keeps_all or self._fits(rows * self._entry_bytes)

    def _fits(self, nbytes: int) -> bool:
        return self._log.used + nbytes <= self._capacity

    def _left(self) -> int:
        """Return what all rows take that are neither kept nor read."""
        return sum(images.left * images.entry_bytes for images in self._images.values())

    def _most(self, group: WrittenGroup, rows: BatchRows) -> int:
        """Return the most that a call on these rows makes a group keep."""
        tables = {name: self._images[name] for name in group.tables}
        if group.slots is None:
            return sum(one.count_left(rows[name]) * one.entry_bytes for name, one in tables.items())
        # A slot for each row, and a row that leaves a slot for it.
        count, slots = sum(len(rows[name]) for name in tables), self._images[group.cache]
        left = sum(one.left for one in tables.values())
        largest = max((one.entry_bytes for one in tables.values()), default=0)
        return min(count, slots.left) * slots.entry_bytes + min(count, left) * largest

    def wait(self) -> None:
        """Wait for the reader."""
        self._over.wait()

    def prepare(self) -> None:
        """Let the system clear memory before the kernels need it; the reader's first call."""
        self._log.populate(self._ahead)

    def pieces(self) -> Iterator[tuple[str, int, Bytes]]:
        """Yield all arrays in pieces: the name, the first byte's place, and the bytes.

        Raises
        ------
        RuntimeError
            If the snapshot was detached meanwhile.
        """
        for name, copy in self._copies.items():
            yield name, 0, np.ascontiguousarray(copy).reshape(-1).view(np.uint8)
        for owner, rows in self._rows.items():
            for piece in rows.pieces(self._images[owner]):
                self._log.populate(self._ahead)
                yield piece
        if not self._attached:
            raise RuntimeError("the collection has stopped keeping what was to be read")

    def after_fork(self) -> None:
        """End it in a forked child, where nobody reads it."""
        self._over = threading.Event()
        self.finish()


_snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()


def _after_fork() -> None:
    for snapshot in list(_snapshots):
        snapshot.after_fork()


os.register_at_fork(after_in_child=_after_fork)
