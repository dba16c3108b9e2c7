"""What outlives a call: the settings, arrays and write step of a collection."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings import array_ops, contract
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Call, Stream
from mpembed._bindings.kernels import StepCounter
from mpembed._collection import storage
from mpembed._collection.engine import Engine
from mpembed._collection.settings import Settings


class CollectionState:
    """A collection as checkpoints, copies and adaptors of frameworks read and restore it.

    Making one allocates the arrays and leaves the rows undefined: `draw_initial_rows` or `restore`
    fills them.

    Parameters
    ----------
    settings : Settings
        What the collection is made with.

    Attributes
    ----------
    settings : Settings
        The same; its seed is that of the last `restore`.
    storage : Storage
        The arrays.
    engine : Engine
        What happens to batches.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.storage = storage.allocate(settings)
        self.engine = Engine(
            self.storage,
            settings.optimizer,
            drop=settings.bounds == "drop",
            raise_nonfinite=settings.on_nonfinite == "raise",
        )

    def draw_initial_rows(self) -> None:
        """Fill every table with its initial rows."""
        with self.writing():
            storage.draw_initial_rows(self.storage)

    # ---- turns ----------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Stream]:
        """Take a turn among the collection's calls, once what kernels found wrong is raised."""
        with self.writing() as on:
            self.engine.raise_found(on)
            yield on

    def writing(self) -> Call:
        """Take a turn among the collection's calls; what comes on any stream waits for it."""
        return self.engine.calls.on_last_stream()

    # ---- reading --------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """Return every array that is state, by name: no copies, and writable."""
        return self.storage.arrays()

    def values(self, on: Stream) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays' values in the host's memory, copied only where they must be.

        Pins are left out of the tags: they belong to open batches.
        """
        return {
            name: self.without_pins(name, array_ops.host(array_ops.read_only(array, on)))
            for name, array in self.arrays().items()
        }

    def step(self, on: Stream) -> int:
        """Return the write step; a device is waited for."""
        return int(self.engine.steps.read(on))

    def step_array(self) -> npt.NDArray[np.int64]:
        """Return the memory of the write step (1,), which the CPU's kernels read and write."""
        return np.asarray(_StepMemory(self.engine.steps))

    # ---- restoring ------------------------------------------------------------------------------

    def without_pins(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array's values without pins; only tags have some."""
        if not _holds_tags(name):
            return values
        return values & np.uint64(~contract.PIN_MASK & (2**64 - 1))

    def check(self, name: str, values: npt.NDArray[Any]) -> None:
        """Refuse values that kernels would trust wrongly: tags that point outside the tables.

        Raises
        ------
        ValueError
            If tags are damaged; they may hold no pins.
        """
        if not _holds_tags(name):
            return
        group = next(g for g in self.storage.groups if name == f"cache.{g.dim}.tags")
        ids = values & np.uint64(contract.EMPTY_TAG)
        used = ids != contract.EMPTY_TAG
        pins = values & np.uint64(contract.PIN_MASK)
        dirty_empty = values[~used] != contract.EMPTY_TAG
        if (ids[used] >= group.kernels.total_rows).any() or pins.any() or dirty_empty.any():
            raise ValueError("its cache tags are damaged")

    def set_step(self, step: int) -> None:
        """Continue from a write step."""
        self.engine.steps.set(step, self.engine.calls.last)

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], step: int, seed: int) -> None:
        """Continue from checked values of all arrays; open batches are dropped."""
        with self.writing() as on:
            self.engine.drop_all()
            for name, own in self.arrays().items():
                array_ops.assign(own, np.ascontiguousarray(arrays[name]), on)
            self.engine.steps.set(step, on)
            if seed != self.settings.seed:
                self.settings = dataclasses.replace(self.settings, seed=seed)
                self.engine.reseed(seed)


class _StepMemory:
    """The memory of a write step, kept alive by its array."""

    def __init__(self, steps: StepCounter) -> None:
        self.steps = steps
        self.__array_interface__ = {
            "version": 3,
            "shape": (1,),
            "typestr": "<i8",
            "data": (steps.address, False),
        }


def _holds_tags(name: str) -> bool:
    return name.startswith("cache.") and name.endswith(".tags")
