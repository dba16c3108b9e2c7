"""Encodes rows and states into a table's memory, outside of the training of batches."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.contract import MIN_WAYS
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._collection.grouping import GroupPlan
from mpembed._collection.storage import CacheArrays, Storage
from mpembed.config import CacheConfig
from mpembed.optim import Optimizer

_CHUNK = 1 << 25  # bytes of values at a time
_MAX_SLOTS = 1024
Values = npt.NDArray[Any]


class TableWriter:
    """Writes rows and states of one table to its memory: what its cache holds does not change.

    All bits are those of a write-back at this write step, for the rows' numbers in the whole table.
    Values are FP32 arrays of the host that their formats can store; no row comes twice.

    Parameters
    ----------
    storage : Storage
        The collection's.
    table : int
        The table's place in the collection.
    step : int
        The write step, which the caller has taken.
    on : Stream
        The turn's.
    """

    def __init__(self, storage: Storage, table: int, step: int, on: Stream) -> None:
        self._storage, self._table, self._step, self._on = storage, table, step, on
        self._optimizer = storage.settings.optimizers[table]
        self._states: _StateWriter | None = None
        self._rows = _one_table(storage, table, kernels.StepCounter(on, step))
        self._rows.upload_descriptors(on)

    def draw_initial_rows(self, begin: int) -> None:
        """Draw the initial values of the rows from `begin` on, as of a new collection."""
        config = self._storage.configs[self._table]
        steps = kernels.StepCounter(self._on, 0)
        group = _one_table(self._storage, self._table, steps, begin=begin)
        group.upload_descriptors(self._on)
        kind, a, b = config.init_parameters()
        group.init_rows(0, registry.INITS[kind], a, b, self._on)

    def write_rows(self, ids: npt.NDArray[np.int64], rows: Values) -> None:
        """Encode rows (n, D)."""
        each = max(1, _CHUNK // (4 * self._rows.dim))
        for begin in range(0, len(ids), each):
            piece = np.ascontiguousarray(rows[begin : begin + each], np.float32)
            values = view(array_ops.upload(piece, self._on), "values", self._on)
            keys = self._rows.keys(0, ids[begin : begin + each], self._on)
            self._rows.write_rows(keys, values, self._on)

    def write_states(self, ids: npt.NDArray[np.int64], states: dict[str, Values]) -> None:
        """Encode all states of rows, (n, D) or (n,) each."""
        if self._optimizer is None or not states:
            return
        if self._states is None:
            self._states = _StateWriter(self._storage, self._table, self._step, self._on)
        self._states.write(ids, states)


class _StateWriter:
    """Writes states through slots of a cache of its own, which a flush writes back.

    The kernel writes a slot's row as well. It goes to memory that nobody reads, the same for every
    row; so few slots are flushed at a time that one thread does it.
    """

    def __init__(self, storage: Storage, table: int, step: int, on: Stream) -> None:
        config, optimizer = storage.configs[table], storage.settings.optimizers[table]
        assert optimizer is not None
        self._on, self._before, self._optimizer = on, step - 1, optimizer
        self._unread = array_ops.full(on.device, (1, config.embedding_dim), np.float32, 0)
        self._steps = kernels.StepCounter(on, step)
        group = _one_table(storage, table, self._steps, unread=array_ops.address(self._unread))
        rules = kernels.UpdateRules(on, 1, 0)
        group.set_optimizer(rules, 0, *optimizer.kernel_kind())
        plan = GroupPlan(config.embedding_dim, optimizer, True, (table,))
        slots = _CHUNK // (4 * (plan.slot_floats + plan.slot_values))
        sets = max(1, min(slots, _MAX_SLOTS) // MIN_WAYS)
        cache = CacheConfig(num_sets=sets, ways=MIN_WAYS)
        self._cache = CacheArrays.allocate(cache, config.num_embeddings, plan, on.device)
        group.set_cache(
            self._cache.tags,
            self._cache.meta,
            self._cache.rows,
            self._cache.values,
            None,
            self._cache.counters,
            registry.POLICIES[cache.policy],
        )
        group.upload_descriptors(on)
        errors = kernels.DeviceErrors(on, 1)
        self._step = kernels.Step([group], [config.name], self._steps, rules, errors, False)

    def write(self, ids: npt.NDArray[np.int64], states: dict[str, Values]) -> None:
        """Encode states; see `TableWriter`."""
        each = self._cache.tags.size
        for begin in range(0, len(ids), each):
            piece = slice(begin, begin + each)
            self._fill(ids[piece], {name: values[piece] for name, values in states.items()})
            self._steps.set(self._before, self._on)  # the flush takes the step
            self._step.flush(self._on)
        self._steps.read(self._on)  # waits for a device: until then it uses the slots

    def _fill(self, ids: npt.NDArray[np.int64], states: dict[str, Values]) -> None:
        """Put rows into the first slots, dirty: a flush does not ask where their sets are."""
        cache, n, on = self._cache, len(ids), self._on
        tags = np.full(cache.tags.size, contract.EMPTY_TAG, np.uint64)
        tags[:n] = ids.astype(np.uint64) | np.uint64(contract.DIRTY_BIT)
        rows = np.zeros(cache.rows.shape, np.float32)
        values = None if cache.values is None else np.zeros(cache.values.shape, np.float32)
        put_states(self._optimizer, states, *_flat(rows, values, n))
        array_ops.assign(cache.rows, rows, on)
        if values is not None:
            array_ops.assign(cache.values, values, on)
        array_ops.assign(cache.tags, tags.reshape(cache.tags.shape), on)


def _one_table(
    storage: Storage,
    table: int,
    steps: kernels.StepCounter,
    *,
    begin: int = 0,
    unread: int | None = None,
) -> kernels.Group:
    """Return a table from its row `begin` on as kernels see it, without a cache.

    With the address of memory that is not read: the states, with that in place of every row.
    """
    settings, config = storage.settings, storage.configs[table]
    (address, stride), own = storage.places(table)
    precision, states = config.precision, None
    if unread is not None:
        address, stride, precision, states = unread, 0, "fp32", own
    rounding = registry.ROUNDINGS[settings.rounding]
    group = kernels.Group(steps, 0, 1, config.embedding_dim, rounding, settings.seed)
    group.add_table(
        config.name,
        config.num_embeddings - begin,
        address + begin * stride,
        stride,
        states=states,
        precision=registry.FORMATS[precision],
        pooling=registry.POOLINGS[config.pooling],
        table_id=settings.table_id(table),
        first_row=config.first_row + begin,
    )
    group.keep_alive(*storage.tables[table].memory())
    return group


def _flat(rows: Values, values: Values | None, n: int) -> tuple[Values, Values | None]:
    """Return the first n slots."""
    flat = rows.reshape(-1, rows.shape[-1])[:n]
    return flat, None if values is None else values.reshape(-1, values.shape[-1])[:n]


def state_columns(optimizer: Optimizer | None, dim: int) -> dict[str, slice | int]:
    """Return where a slot holds each state: columns behind the row, or one of its values."""
    found: dict[str, slice | int] = {}
    elements = values = 0
    for state in () if optimizer is None else optimizer.states:
        if state.shape == registry.STATE_ELEMENT:
            elements += 1
            found[state.name] = slice(elements * dim, (elements + 1) * dim)
        else:
            found[state.name] = values
            values += 1
    return found


def put_states(
    optimizer: Optimizer | None, states: dict[str, Values], rows: Values, values: Values | None
) -> None:
    """Set states of slots: `rows` (n, floats) and `values` (n, values) of a slot."""
    if optimizer is None or not states:
        return
    elements = sum(state.shape == registry.STATE_ELEMENT for state in optimizer.states)
    for name, place in state_columns(optimizer, rows.shape[1] // (1 + elements)).items():
        if name not in states:
            continue
        if isinstance(place, slice):
            rows[:, place] = states[name]
        elif values is not None:
            values[:, place] = states[name]
