"""Which saves a collection continues, and what has changed since each of them."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpembed._bindings.device import Stream
from mpembed._collection.changes import ChangeTracking

_CHUNK = 1 << 20  # words of a bitmap that are looked through at a time
_WORD = 32


class Background(Protocol):
    """A save in the background."""

    def remind(self) -> None:
        """Tell of a failure that nobody has asked for."""


class PackedBits:
    """A bitmap that is kept: whole, or the words that are not 0 where that takes less memory."""

    def __init__(self, words: npt.NDArray[np.uint32]) -> None:
        places = np.flatnonzero(words)
        sparse = len(places) * (places.itemsize + words.itemsize) < words.nbytes
        self._places = places if sparse else None
        self._words = words[places] if sparse else words.copy()
        self.nbytes = self._words.nbytes + (places.nbytes if sparse else 0)
        self._size = len(words)

    def add_to(self, words: npt.NDArray[np.uint32]) -> None:
        """Set the bits in another bitmap, too."""
        if self._places is None:
            words |= self._words
        else:
            words[self._places] |= self._words

    def with_others(self, others: "PackedBits | None") -> "PackedBits":
        """Return the bits that are set in either bitmap."""
        if others is None:
            return self
        words = np.zeros(self._size, np.uint32)
        self.add_to(words)
        others.add_to(words)
        return PackedBits(words)


class SavePoint(NamedTuple):
    """A state that was saved.

    Attributes
    ----------
    step : int
        The write step. Nothing changes without taking one, except learning rates.
    identities : tuple of str
        Of the files that hold this state; none while the first is being written.
    changed : dict of str -> PackedBits
        What was written from here to the next save point. That of the last one is empty, or was
        written from here to a later save that has failed.
    """

    step: int
    identities: tuple[str, ...]
    changed: Mapping[str, PackedBits] = {}


class EndedSave(NamedTuple):
    """A whole save that was added without an identity, and has been written or has failed.

    Attributes
    ----------
    era, step : int
        Those of its moment.
    identity : str or None
        Of its file; None if it has failed.
    """

    era: int
    step: int
    identity: str | None


class SaveHistory:
    """The saves that a delta may continue.

    Parameters
    ----------
    changes : ChangeTracking
        What was written since the last of them, if that is marked.

    Attributes
    ----------
    points : tuple of SavePoint
        The saves, ascending by step.
    era : int
        How often the state was replaced: a step means the same as long as it is the same.
    background : Background or None
        The last save in the background.
    ended : deque of EndedSave
        Where threads that write saves put what `add_ended` takes over, in a turn among the
        collection's calls. A thread waits for no turn: a call may be waiting for the thread.
    """

    def __init__(self, changes: ChangeTracking) -> None:
        self._changes = changes
        self.points: tuple[SavePoint, ...] = ()
        self.era = 0
        self.background: Background | None = None
        self.ended: deque[EndedSave] = deque()

    @property
    def tracking(self) -> bool:
        """Whether what is written is marked."""
        return self._changes.active

    @property
    def last(self) -> SavePoint | None:
        """What was saved, loaded or applied last."""
        return self.points[-1] if self.points else None

    @property
    def nbytes(self) -> int:
        """Bytes of what was marked before the last save."""
        return sum(bits.nbytes for point in self.points for bits in point.changed.values())

    def remind(self) -> None:
        """Tell of a save in the background that has failed, if nobody has asked for its result."""
        if self.background is not None:
            self.background.remind()

    def point(self, step: int) -> SavePoint:
        """Return the save at a step, of which all changes are known.

        Raises
        ------
        ValueError
            If there is none.
        """
        begin = "call save(path, track=True), then pass since= the step of that save (emb.step)"
        if not self.tracking:
            raise ValueError(f"since={step}: changes are not tracked; to begin, {begin}")
        for known in self.points:
            if known.step == step and not known.identities:
                raise ValueError(
                    f"since={step}: the file of that save is not written: wait for its result(), "
                    "or if that is an error, pass since= another step"
                )
            if known.step == step:
                return known
        steps = ", ".join(str(known.step) for known in self.points) or "none"
        raise ValueError(
            f"since={step}: no save at this step is known (known steps: {steps}); pass one of "
            f"them, or to begin anew, {begin}"
        )

    def changed_since(self, step: int, on: Stream) -> dict[str, npt.NDArray[np.uint32]]:
        """Return what was written since a save: bitmaps by the name of a table or cache."""
        words = self._changes.read(on)
        for point in self.points:
            if point.step >= step:
                for name, bits in point.changed.items():
                    bits.add_to(words[name])
        return words

    def saved(self, step: int, identity: str | None, on: Stream) -> None:
        """Add a save of the state as it is; without an identity its file is still being written.

        Interrupted at any point, it leaves more marked than was written and never less.
        """
        last = self.last
        here = last.identities if last is not None and last.step == step else ()
        new = SavePoint(step, _with(here, identity))
        before = self.points if self.tracking else ()
        if before and before[-1].step == step:
            self.points = (*before[:-1], new)  # nothing was written in between
            return
        if before:
            marked = {name: PackedBits(words) for name, words in self._changes.read(on).items()}
            *older, last = before
            marked = _either(marked, last.changed)
            before = (*older, SavePoint(last.step, last.identities, marked))
        self.points = (*before, new)
        if self.tracking:
            self._changes.start(on)

    def add_ended(self) -> None:
        """Take over how threads have ended; again, or interrupted, it does no harm."""
        for era, step, identity in self.ended.copy():
            if era == self.era and identity is None:
                self._failed(step)
            elif era == self.era and identity is not None:
                self._written(step, identity)
            with contextlib.suppress(ValueError):
                self.ended.remove(EndedSave(era, step, identity))

    def _written(self, step: int, identity: str) -> None:
        self._name(step, lambda names: _with(names, identity))
        self.forget_before(step)

    def forget_before(self, step: int) -> None:
        """Forget the saves before a whole one: it replaces them."""
        self.points = tuple(one for one in self.points if one.step >= step)

    def withdraw(self, step: int, identity: str) -> None:
        """Take the identity of a file back that was not written; the marks stay."""
        self._name(step, lambda names: tuple(one for one in names if one != identity))

    def _name(self, step: int, names: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        """Give the save at a step other identities."""
        self.points = tuple(
            SavePoint(step, names(one.identities), one.changed) if one.step == step else one
            for one in self.points
        )

    def _failed(self, step: int) -> None:
        """Forget a save that no file holds; what was written since was since the one before."""
        for number, one in enumerate(self.points):
            if one.step == step and not one.identities:
                before, after = self.points[:number], self.points[number + 1 :]
                if before:
                    *older, last = before
                    both = _either(last.changed, one.changed)
                    before = (*older, SavePoint(last.step, last.identities, both))
                self.points = (*before, *after)
                return

    def start(self, step: int) -> None:
        """Note that what is written is marked from this step on."""
        self.points = tuple(known for known in self.points if known.step == step)

    def stop(self, on: Stream) -> None:
        """Mark nothing from now on; deltas may continue no save."""
        self.points = self.points[-1:]
        self._changes.stop(on)

    def forget(self) -> None:
        """Forget all saves: the state is of another history."""
        self.points = ()
        self.era += 1


def _with(identities: tuple[str, ...], identity: str | None) -> tuple[str, ...]:
    added = () if identity is None or identity in identities else (identity,)
    return identities + added


def _either(one: Mapping[str, PackedBits], two: Mapping[str, PackedBits]) -> dict[str, PackedBits]:
    return {**two, **{name: bits.with_others(two.get(name)) for name, bits in one.items()}}


def numbers(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return the numbers of the bits that are set, ascending."""
    found = [np.zeros(0, np.int64), *_numbers(words)]
    return np.concatenate(found)


def _numbers(words: npt.NDArray[np.uint32]) -> Iterator[npt.NDArray[np.int64]]:
    for begin in range(0, len(words), _CHUNK):
        piece = words[begin : begin + _CHUNK]
        places = np.flatnonzero(piece)
        bits = np.unpackbits(piece[places].view(np.uint8), bitorder="little")
        at = np.flatnonzero(bits)
        yield _WORD * (begin + places[at // _WORD]) + at % _WORD
