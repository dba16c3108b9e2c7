"""The optimizer's states of single rows, cached or not: read and set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import devices, registry
from mpembed._arguments import arrays
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import View, require
from mpembed._collection.records import StoredArray
from mpembed._collection.state import CollectionState, half_done
from mpembed._collection.storage import CacheArrays, GroupStorage
from mpembed._collection.table_writer import TableWriter, state_columns
from mpembed.ops import dequantize
from mpembed.optim import Optimizer

Ids = npt.NDArray[np.int64]
States = dict[str, npt.NDArray[np.float32]]


def views(states: Any, on: Stream) -> dict[str, View]:
    """Return views of what a caller passes as states by name."""
    if not isinstance(states, Mapping):
        raise TypeError(f"states must be a dict of state name -> array, got {states!r}")
    return {name: view(given, f"states[{name!r}]", on) for name, given in states.items()}


def checked_states(
    state: CollectionState,
    group: GroupStorage,
    position: int,
    states: dict[str, View],
    n: int,
    on: Stream,
) -> States:
    """Return what a caller passes as states of n rows, copied to the host."""
    table = group.plan.tables[position]
    config, optimizer = state.settings.tables[table], state.settings.optimizers[table]
    known = {one.name: one for one in (() if optimizer is None else optimizer.states)}
    found = {}
    for name, values in states.items():
        if name not in known:
            raise ValueError(
                f"states: table {config.name!r} has no state {name!r}; it has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
        width = config.embedding_dim if known[name].shape == registry.STATE_ELEMENT else 1
        shape = (n, width) if known[name].shape == registry.STATE_ELEMENT else (n,)
        require(values, arrays.FLOAT, len(shape), shape)
        held = kernels.host_copy(values, on, always=True)  # the caller's may change
        here = devices.CPU.stream(None)
        copied = view(held, values.name, here)
        arrays.storable(copied, n, width, known[name].precision, values.name, here)
        if optimizer is not None and name in optimizer.squares:
            _refuse_negative(values.name, held)
        found[name] = held
    return found


def _refuse_negative(name: str, values: npt.NDArray[np.float32]) -> None:
    """Raise ValueError for a sum of squares below 0: an update takes its root."""
    found = np.argwhere(values < 0)
    if len(found) > 0:
        place = tuple(found[0])
        raise ValueError(
            f"{name}: row {place[0]} has {values[place]}, but a sum of squares is not negative"
        )


def table_states(state: CollectionState, table: int, ids: Ids, on: Stream) -> States:
    """Return the states of rows as their table holds them."""
    optimizer, records = state.settings.optimizers[table], state.storage.tables[table]
    kept = () if optimizer is None else optimizer.states
    stored = zip(kept, records.arrays()[1:], strict=True)
    return {one.name: decoded(array.gather(ids, on), one.precision) for one, array in stored}


def decoded(stored: npt.NDArray[Any], precision: str) -> npt.NDArray[np.float32]:
    """Return stored values of a state, (n, D) or (n,), as FP32."""
    if stored.size == 0:
        return np.zeros(stored.shape, np.float32)
    packed = stored.reshape(len(stored), -1)
    values: npt.NDArray[np.float32] = dequantize(packed.view(np.uint8), precision, packed.shape[1])
    return values.reshape(stored.shape)


def read_states(
    state: CollectionState, group: GroupStorage, position: int, ids: Ids, on: Stream
) -> States:
    """Return the current states of rows in the host's memory: those of slots for cached rows."""
    table = group.plan.tables[position]
    found = table_states(state, table, ids, on)
    if group.cache is not None and found:
        slots = _Slots(group, position, ids, on)
        for name, values in slots.states(state.settings.optimizers[table]).items():
            found[name][slots.cached] = values
    return found


class _Slots:
    """Where a cache holds some rows.

    Attributes
    ----------
    cached : array of int64
        Which of the rows are cached.
    numbers : array of int64
        Their slots.
    """

    def __init__(self, group: GroupStorage, position: int, ids: Ids, on: Stream) -> None:
        assert group.cache is not None
        self._cache: CacheArrays = group.cache
        self._dim, self._on = group.plan.dim, on
        keys = group.kernels.keys(position, ids, on)
        found = array_ops.result((len(ids),), np.int32, on)
        kernels.cache_lookup(
            view(array_ops.read_only(self._cache.tags, on), "tags", on),
            keys,
            view(found, "out", on),
            on,
        )
        places = array_ops.host(array_ops.read_only(found, on)).astype(np.int64)
        self.cached = np.flatnonzero(places >= 0)
        self.numbers = places[self.cached]

    def _array(self, name: str) -> StoredArray:
        """Return one of the cache's arrays by slot."""
        return StoredArray.of(self._cache.arrays()[name]).flattened(2)

    def states(self, optimizer: Optimizer | None) -> States:
        """Return the states in these slots."""
        places = state_columns(optimizer, self._dim)
        rows, values = self._gathered(places)
        return {
            name: rows[:, place] if isinstance(place, slice) else values[:, place]
            for name, place in places.items()
        }

    def _gathered(self, places: dict[str, slice | int]) -> tuple[Any, Any]:
        """Return the slots' rows and values, each where a state lies there."""
        elements = any(isinstance(place, slice) for place in places.values())
        singles = any(not isinstance(place, slice) for place in places.values())
        return (
            self._array("rows").gather(self.numbers, self._on) if elements else None,
            self._array("values").gather(self.numbers, self._on) if singles else None,
        )

    def set_states(self, optimizer: Optimizer | None, states: States) -> None:
        """Set states of all cached rows, and mark their slots dirty."""
        places = state_columns(optimizer, self._dim)
        places = {name: place for name, place in places.items() if name in states}
        rows, values = self._gathered(places)
        for name, place in places.items():
            target = rows if isinstance(place, slice) else values
            target[:, place] = states[name][self.cached]
        tags = self._array("tags")
        marked = tags.gather(self.numbers, self._on) | np.uint64(contract.DIRTY_BIT)
        for name, new in (("rows", rows), ("values", values)):
            if new is not None:
                self._array(name).scatter(self.numbers, new, self._on)
        tags.scatter(self.numbers, marked, self._on)

    def arrays(self) -> list[tuple[StoredArray, Ids]]:
        """Return what `set_states` writes, with the places there."""
        names = [name for name in ("rows", "values", "tags") if name in self._cache.arrays()]
        return [(self._array(name), self.numbers) for name in names]


def set_states(
    state: CollectionState,
    group: GroupStorage,
    position: int,
    ids: Ids,
    states: States,
    on: Stream,
) -> None:
    """Set checked states of rows, none of them twice: in FP32 in slots, rounded in the table."""
    table = group.plan.tables[position]
    optimizer = state.settings.optimizers[table]
    slots = None if group.cache is None else _Slots(group, position, ids, on)
    missed = np.ones(len(ids), np.bool_)
    if slots is not None:
        missed[slots.cached] = False
    rest = ids[missed]
    # All states of a row are written together; those that stay are stored as they are.
    whole = table_states(state, table, rest, on)
    whole.update({name: values[missed] for name, values in states.items()})
    step = state.engine.next_step(on)
    writer = TableWriter(state.storage, table, step, on)
    written = [(array, rest) for array in state.storage.tables[table].arrays()[1:]]
    written += [] if slots is None else slots.arrays()
    before = [array.gather(places, on) for array, places in written]
    # What kernels do for rows that they write: a save that goes on, and deltas, know nothing else.
    owned = {f"table.{state.settings.tables[table].name}": rest}
    owned |= {} if slots is None else {f"cache.{group.plan.label}": slots.numbers}
    state.storage.keep_rows(owned)
    for name, numbers in owned.items():
        state.storage.changes.mark(name, numbers, on)
    try:
        state.engine.calls.half_done = half_done("set_state")
        state.engine.steps.set(step, on)
        writer.write_states(rest, whole)
        if slots is not None:
            slots.set_states(optimizer, states)
        state.engine.calls.half_done = None
    except BaseException:  # one of memory or of a signal, in the middle
        for (array, places), values in zip(written, before, strict=True):
            array.scatter(places, values, on)
        state.engine.steps.set(step - 1, on)
        state.engine.calls.half_done = None
        raise
