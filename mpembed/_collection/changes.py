"""Which rows and slots were written since a moment: a bit each, which the kernels set."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpembed._bindings import array_ops, kernels
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Device, Stream


@dataclass(frozen=True)
class WrittenGroup:
    """What the kernels write of a group: rows of each table, by its name, and slots of the cache.

    Attributes
    ----------
    kernels : mpembed._bindings.kernels.Group
        The group.
    tables : dict of str -> int
        The rows of each table, in the group's order.
    cache : str
        The cache's name.
    slots : int or None
        None where there is no cache.
    """

    kernels: kernels.Group
    tables: dict[str, int]
    cache: str
    slots: int | None

    def counts(self) -> dict[str, int]:
        """Return how many rows or slots there are, by name."""
        return self.tables | ({} if self.slots is None else {self.cache: self.slots})


@dataclass
class ChangeTracking:
    """The bitmaps of a collection's tables and caches; none until `start`.

    On a device they stay allocated: a CUDA graph that was captured meanwhile has their addresses.
    """

    device: Device
    groups: list[WrittenGroup] = field(default_factory=list)
    active: bool = False
    bitmaps: dict[str, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the bitmaps."""
        return sum(int(bitmap.nbytes) for bitmap in self.bitmaps.values())

    def start(self, on: Stream) -> None:
        """Mark what is written from now on; what was marked before is forgotten.

        A CUDA graph that was captured before the first call marks no slots:
        `CollectionState.track_changes` refuses that.
        """
        if not self.bitmaps:
            self.bitmaps = {
                name: array_ops.full(self.device, (-(-n // 32),), np.uint32, 0)
                for name, n in self._counts().items()
            }
        for bitmap in self.bitmaps.values():
            array_ops.assign(bitmap, 0, on)
        for group in self.groups:
            tables = [self.bitmaps[name] for name in group.tables]
            group.kernels.set_changed(tables, self.bitmaps.get(group.cache), on)
        self.active = True

    def read(self, on: Stream) -> dict[str, npt.NDArray[np.uint32]]:
        """Return copies of the bitmaps; a device is waited for.

        Returns
        -------
        dict
            ``table.{name}``: a bit a row, set if the row or one of its states was written in its
            table. ``cache.{label}``: a bit a slot, set if the slot's row or states were written.
            Row or slot i is bit ``i % 32`` of word ``i // 32``. Tags and policy state, which change
            at every forward, have no bits. `CollectionState.restore` sets all.

        Raises
        ------
        RuntimeError
            If nothing is marked.
        """
        if not self.active:
            raise RuntimeError("changes are not tracked: call track_changes() first")
        return {
            name: array_ops.host(array_ops.read_only(bitmap, on)).copy()
            for name, bitmap in self.bitmaps.items()
        }

    def stop(self, on: Stream) -> None:
        """Mark nothing from now on."""
        for group in self.groups:
            group.kernels.set_changed([None] * len(group.tables), None, on)
        self.active = False
        if self.device.synchronous:
            self.bitmaps = {}

    def mark(self, name: str, numbers: npt.NDArray[np.int64], on: Stream) -> None:
        """Mark rows or slots that others than the kernels write."""
        if self.active and len(numbers) > 0:
            words = array_ops.host(array_ops.read_only(self.bitmaps[name], on)).copy()
            np.bitwise_or.at(words, numbers // 32, np.uint32(1) << (numbers % 32).astype(np.uint32))
            array_ops.assign(self.bitmaps[name], words, on)

    def mark_all(self, on: Stream) -> None:
        """Mark everything, where others than the kernels have written it."""
        for name, n in self._counts().items() if self.active else ():
            marks = np.full(-(-n // 32), 2**32 - 1, np.uint32)
            if n % 32 != 0:
                marks[-1] = 2 ** (n % 32) - 1
            array_ops.assign(self.bitmaps[name], marks, on)

    def _counts(self) -> dict[str, int]:
        return {name: n for group in self.groups for name, n in group.counts().items()}
