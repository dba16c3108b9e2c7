"""What outlives a call: the settings, arrays and write step of a collection."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpembed._bindings import array_ops, contract
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Call, Stream
from mpembed._bindings.kernels import StepCounter, UpdateRules
from mpembed._collection import storage
from mpembed._collection.engine import Engine
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings


class Counters(NamedTuple):
    """What a collection counts.

    Attributes
    ----------
    step : int
        The write step: calls that could change state.
    updates : int
        Updates, which bias corrections and decaying rates follow.
    """

    step: int
    updates: int

    def named(self) -> dict[str, int]:
        """Return the counts by name."""
        return {"step": self.step, "updates": self.updates}


COUNTERS = tuple(Counters(0, 0).named())


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

    def arrays(self) -> dict[str, StoredArray]:
        """Return every array that is state, by name, to be read and written in pieces."""
        return self.storage.arrays()

    def views(self, on: Stream) -> dict[str, Array]:
        """Return every array that is state, contiguous and read-only: copies of what is in records.

        What is not is a view.
        """
        return {name: _view(stored, on) for name, stored in self.arrays().items()}

    def counters(self, on: Stream) -> Counters:
        """Return the write step and the count of updates; a device is waited for."""
        return Counters(int(self.engine.steps.read(on)), int(self.storage.rules.read_updates(on)))

    def counter_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the memory of the counters (1,), which the CPU's kernels read and write."""
        owners: dict[str, StepCounter | UpdateRules]
        owners = {"step": self.engine.steps, "updates": self.storage.rules}
        return {name: np.asarray(_CounterMemory(owner)) for name, owner in owners.items()}

    # ---- restoring ------------------------------------------------------------------------------

    def without_pins(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array's values without pins, which open batches hold; only tags have some."""
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
        group = next(g for g in self.storage.groups if name == f"cache.{g.plan.label}.tags")
        ids = values & np.uint64(contract.EMPTY_TAG)
        used = ids != contract.EMPTY_TAG
        pins = values & np.uint64(contract.PIN_MASK)
        dirty_empty = values[~used] != contract.EMPTY_TAG
        if (ids[used] >= group.kernels.total_rows).any() or pins.any() or dirty_empty.any():
            raise ValueError("its cache tags are damaged")

    def set_counters(self, counters: Counters, on: Stream) -> None:
        """Continue from a write step and a count of updates."""
        self.engine.steps.set(counters.step, on)
        self.storage.rules.set_updates(counters.updates, on)

    def restore(
        self, arrays: Mapping[str, npt.NDArray[Any]], counters: Counters, seed: int
    ) -> None:
        """Continue from checked values of all arrays; open batches are dropped."""
        with self.writing() as on:
            self.engine.drop_all()
            for name, own in self.arrays().items():
                for begin, end in own.pieces():
                    own.write(begin, arrays[name][begin:end], on)
            self.set_counters(counters, on)
            if seed != self.settings.seed:
                self.settings = dataclasses.replace(self.settings, seed=seed)
                self.engine.reseed(seed)


class _CounterMemory:
    """The memory of a counter, kept alive by its array."""

    def __init__(self, owner: StepCounter | UpdateRules) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "shape": (1,),
            "typestr": "<i8",
            "data": (owner.address, False),
        }


def _view(stored: StoredArray, on: Stream) -> Array:
    """Return an array as others may read it."""
    if not stored.dense:
        return array_ops.read_only(array_ops.upload(stored.whole(on), on), on)
    return array_ops.read_only(array_ops.reshaped(stored.memory, stored.shape, stored.dtype), on)


def _holds_tags(name: str) -> bool:
    return name.startswith("cache.") and name.endswith(".tags")
