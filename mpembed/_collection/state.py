"""What outlives a call: the settings, arrays and write step of a collection."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, contract
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Call, Stream
from mpembed._bindings.kernels import StepCounter, UpdateRules
from mpembed._collection import storage
from mpembed._collection.engine import Engine
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings
from mpembed._collection.snapshot import Snapshot
from mpembed._collection.state_checks import StateChecks
from mpembed.load_report import LoadReport
from mpembed.rounding import RoundingReport, judge


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
    restores : int
        Calls of `restore` so far: what is kept of the rows is of use no longer than it is the same.
    load_report : LoadReport or None
        What became of the checkpoint that it was loaded from.
    foreign_writes : callable or None
        Counts how often others than the collection's calls have written the arrays, of this state.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.restores = 0
        self.load_report: LoadReport | None = None
        self.foreign_writes: Callable[[CollectionState], int] | None = None
        self._known_writes = 0
        self.storage = storage.allocate(settings)
        self.engine = Engine(
            self.storage,
            drop=settings.bounds == "drop",
            raise_nonfinite=settings.on_nonfinite == "raise",
        )
        # The rounding sums at the last report. Those in the storage are state, which a report must
        # not change: it subtracts these instead of setting those to 0.
        self._reported: npt.NDArray[np.int64] = np.zeros((1, 1), np.int64)

    def draw_initial_rows(self) -> None:
        """Fill every table with its initial rows."""
        with self.writing():
            storage.draw_initial_rows(self.storage)

    # ---- turns ----------------------------------------------------------------------------------

    def reading(self) -> Call:
        """Take a turn among the collection's calls, once what kernels found wrong is raised."""
        return self.engine.calls.on_last_stream(first=self.engine.raise_found, holds=True)

    def writing(self) -> Call:
        """Take a turn among the collection's calls; what comes on any stream waits for it.

        Also where a call was interrupted that left arrays half changed.
        """
        return self.engine.calls.on_last_stream(repairs=True)

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

    def rounding_report(self, on: Stream, *, keep: bool = False) -> RoundingReport:
        """Return the report since the last one; a device is waited for.

        Parameters
        ----------
        on : Stream
            The turn's.
        keep : bool
            The next report covers what this one does, too.
        """
        sums: npt.NDArray[np.int64]
        sums = array_ops.host(array_ops.read_only(self.storage.noise, on)).copy()
        found = judge(self.settings.tables, self._load_factors(), sums - self._reported)
        if not keep:
            self._reported = sums
        return found

    def _load_factors(self) -> list[float]:
        """Return the cache rows as a share of the rows of each table's group."""
        shares = [0.0] * len(self.settings.tables)
        for group in self.storage.groups:
            if group.cache is not None:
                for table in group.plan.tables:
                    shares[table] = group.cache.tags.size / max(1, group.kernels.total_rows)
        return shares

    def track_changes(self, on: Stream) -> None:
        """Mark the rows and slots that are written from now on, for ``storage.changes.read``.

        Raises
        ------
        RuntimeError
            If a CUDA graph was captured before the first call: its launches would mark too little.
        """
        if self.engine.calls.was_captured and not self.storage.changes.bitmaps:
            raise RuntimeError(
                "changes cannot be tracked once a CUDA graph has captured the collection's calls: "
                "start before the capture"
            )
        self.storage.changes.start(on)

    def notice_foreign_writes(self, on: Stream) -> bool:
        """Forget all saves if others have written the arrays, of which nothing is marked.

        Return whether they have, since the last time.
        """
        count = 0 if self.foreign_writes is None else self.foreign_writes(self)
        if count == self._known_writes:
            return False
        self.storage.saves.forget()
        self.storage.changes.mark_all(on)
        self._known_writes = count
        return True

    def refuse_second_snapshot(self) -> None:
        """Raise RuntimeError while one is read."""
        if self.storage.snapshot is not None and not self.storage.snapshot.over:
            raise RuntimeError(
                "a save in the background is going on: wait for its result() before the next one"
            )

    def snapshot(self, on: Stream) -> Snapshot:
        """Return the state as it is now, to be given to `start_snapshot` in the same turn."""
        arrays = self.arrays()
        copies = {
            name: self.without_pins(name, stored.whole(on)).copy()
            for name, stored in arrays.items()
            if storage.leading_dimensions(name) == 0
        }
        return Snapshot(self.storage.changes.groups, arrays, copies)

    def start_snapshot(self, snapshot: Snapshot) -> None:
        """Let a snapshot be read while the CPU's kernels go on.

        Nothing else may write the arrays before it is over (`Storage.finish_snapshot`). Where this
        is interrupted, `Storage.end_snapshot` takes it back.

        Raises
        ------
        RuntimeError
            While another one is read, which goes on.
        """
        while self.storage.snapshot is not snapshot:
            self.refuse_second_snapshot()
            before = self.storage.snapshot
            # A signal's handler may have started another one; none comes between the last check
            # and the line below.
            if (before is None or before.give_way()) and self.storage.snapshot is before:
                self.storage.snapshot = snapshot
        snapshot.attach()

    # ---- restoring ------------------------------------------------------------------------------

    def without_pins(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array's values without pins, which open batches hold; only tags have some."""
        if not _holds_tags(name):
            return values
        return values & np.uint64(~contract.PIN_MASK & (2**64 - 1))

    def checks(self) -> StateChecks:
        """Return the checks of arrays that come from elsewhere, to be taken piece by piece."""
        return StateChecks(self.settings)

    def check(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise ValueError if values of all arrays are not what training leaves."""
        checks = self.checks()
        for name, own in self.arrays().items():
            for begin, end in own.pieces():
                checks.piece(name, begin, arrays[name][begin:end])

    def check_own(self, on: Stream) -> None:
        """Raise ValueError if the arrays in memory are not what training leaves."""
        checks = self.checks()
        for name, own in self.arrays().items():
            for begin, end in own.pieces():
                checks.piece(name, begin, self.without_pins(name, own.read(begin, end, on)))

    def set_counters(self, counters: Counters, on: Stream) -> None:
        """Continue from a write step and a count of updates."""
        self.engine.steps.set(counters.step, on)
        self.storage.rules.set_updates(counters.updates, on)

    def set_updates(self, updates: int, on: Stream) -> None:
        """Continue from a count of updates; takes a write step, or as many as there were updates.

        Raises
        ------
        TypeError, ValueError
            If it is no count.
        OverflowError
            If no write step is left.
        """
        count = integer("updates", updates, 0, contract.MAX_STEP)
        step, before = max(self.engine.next_step(on), count), self.counters(on)
        try:
            self.engine.calls.half_done = half_done("set_updates")
            self.set_counters(Counters(step, count), on)
            self.engine.calls.half_done = None
        except BaseException:  # a signal, between the two
            self.set_counters(before, on)
            self.engine.calls.half_done = None
            raise

    def restore(
        self, arrays: Mapping[str, npt.NDArray[Any]], counters: Counters, seed: int
    ) -> None:
        """Continue from values of all arrays, of the right shapes; open batches are dropped.

        Raises
        ------
        ValueError
            If the values are not what training leaves; then nothing has changed.
        """

        def fill(on: Stream) -> None:
            for name, own in self.arrays().items():
                for begin, end in own.pieces():
                    own.write(begin, arrays[name][begin:end], on)
            self.set_counters(counters, on)
            self.reseed(seed)

        self.replace(lambda: self.check(arrays), fill)

    def replace(self, check: Callable[[], None], fill: Callable[[Stream], None]) -> None:
        """Let a function fill all arrays and counters anew; open batches are dropped.

        Parameters
        ----------
        check : callable
            Called first, in the same turn. If it raises, nothing has changed.
        fill : callable
            Writes the arrays, counters and seed. If it raises, calls are refused until a state is
            loaded.
        """
        calls = self.engine.calls
        with calls.on_last_stream(changes=True, alone=True, repairs=True) as on:
            self.storage.finish_snapshot()  # which may wait: nothing is checked before
            check()
            self.engine.drop_all(on)
            calls.half_done = half_done("load_state_dict")
            self.restores += 1
            self.storage.saves.forget()
            self._reported = np.zeros_like(self._reported)
            fill(on)
            self.storage.changes.mark_all(on)
            calls.half_done = None

    def reseed(self, seed: int) -> None:
        """Draw all random bits from this seed from the next call on."""
        if seed != self.settings.seed:
            self.settings = dataclasses.replace(self.settings, seed=seed)
            self.storage.settings = self.settings
            self.engine.reseed(seed)


def half_done(what: str) -> str:
    """Return what calls raise after one that left arrays half changed."""
    return (
        f"{what} was interrupted and has set a part of the arrays: load a state again, with "
        "load_state_dict or EmbeddingBagCollection.load"
    )


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
