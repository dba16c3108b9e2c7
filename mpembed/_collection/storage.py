"""The arrays of a collection; Python owns them, kernels get views."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpembed import registry
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import CallOrder, Device, Stream
from mpembed._bindings.tensor import Tensor
from mpembed._bindings.view import View
from mpembed._collection import grouping
from mpembed._collection.batch_rows import BatchRows
from mpembed._collection.changes import ChangeTracking, WrittenGroup
from mpembed._collection.grouping import GroupPlan
from mpembed._collection.records import Field, Records, StoredArray
from mpembed._collection.save_history import SaveHistory
from mpembed._collection.settings import Settings
from mpembed._collection.snapshot import Snapshot
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer

_STATE_DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": np.uint16}


@dataclass
class CacheArrays:
    """A group's cache: 12 bytes of metadata a slot, the FP32 rows and states, and LFU's sketch."""

    tags: Array
    meta: Array
    rows: Array  # with the states of a value an element
    values: Array | None  # the states of a value a row
    counters: Array
    sketch: Array | None

    @classmethod
    def allocate(
        cls, config: CacheConfig, table_rows: int, group: GroupPlan, device: Device
    ) -> "CacheArrays":
        """Return an empty cache for a group with this many table rows."""
        made = {
            name: array_ops.full(device, shape, dtype, contract.EMPTY_TAG if name == "tags" else 0)
            for name, (dtype, shape) in cache_shapes(config, table_rows, group).items()
        }
        return cls(**{"values": None, "sketch": None, **made})

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        names = ("tags", "meta", "rows", "values", "counters", "sketch")
        named = {name: getattr(self, name) for name in names}
        return {name: array for name, array in named.items() if array is not None}


@dataclass
class GroupStorage:
    """Tables that share kernels, and their cache."""

    plan: GroupPlan
    kernels: kernels.Group
    cache: CacheArrays | None


@dataclass
class Storage:
    """All arrays of a collection, its counters, and what its kernels found wrong."""

    device: Device
    steps: kernels.StepCounter
    rules: kernels.UpdateRules
    device_errors: kernels.DeviceErrors
    settings: Settings
    tables: list[Records]
    stats: Array
    noise: Array  # sums over a sample of the writes
    groups: list[GroupStorage] = field(default_factory=list)
    changes: ChangeTracking = field(init=False)
    saves: SaveHistory = field(init=False)
    snapshot: Snapshot | None = None
    _spans: list[tuple[int, int, str]] | None = None

    def __post_init__(self) -> None:
        self.changes = ChangeTracking(self.device)
        self.saves = SaveHistory(self.changes)

    def used_by(self, calls: CallOrder) -> None:
        """Keep tables in the host's memory, once nobody refers to them, until calls are done."""
        for records in self.tables:
            for buffer in records.memory():
                if isinstance(buffer, Tensor):
                    buffer.memory.used_by(calls)

    @property
    def configs(self) -> tuple[TableConfig, ...]:
        """The tables."""
        return self.settings.tables

    def arrays(self) -> dict[str, StoredArray]:
        """Return every array that is state, by name."""
        named: dict[str, StoredArray] = {}
        for config, records in zip(self.configs, self.tables, strict=True):
            for one, stored in zip(records.fields, records.arrays(), strict=True):
                named[f"table.{config.name}.{one.name}"] = stored
        for group in self.groups:
            if group.cache is not None:
                for key, array in group.cache.arrays().items():
                    named[f"cache.{group.plan.label}.{key}"] = StoredArray.of(array)
        named["stats"] = StoredArray.of(self.stats)
        named["noise"] = StoredArray.of(self.noise)
        return named

    @property
    def num_slots(self) -> int:
        """Slots of all caches."""
        return sum(group.slots or 0 for group in self.changes.groups)

    def make_room(self, rows: int, find: Callable[[], BatchRows | None] | None = None) -> None:
        """Before a call that writes at most so many rows: see `Snapshot.make_room`."""
        if self.snapshot is not None:
            self.snapshot.make_room(rows, find)
            self.drop_read_snapshot()

    def keep_rows(self, rows: BatchRows) -> None:
        """Before others than the kernels write some rows and slots, by the names of their owners.

        Waits as `make_room` does.
        """
        self.make_room(sum(map(len, rows.values())))
        if self.snapshot is not None:
            for name, numbers in rows.items():
                self.snapshot.keep(name, numbers)

    def drop_read_snapshot(self) -> None:
        """Give back the memory of a snapshot that is over; the thread that reads it cannot."""
        if self.snapshot is not None and self.snapshot.over:
            self.end_snapshot(self.snapshot)

    def finish_snapshot(self) -> None:
        """Wait until a snapshot is over, before others than the kernels write the arrays."""
        if self.snapshot is not None:
            self.snapshot.wait()
            self.end_snapshot(self.snapshot)

    def end_snapshot(self, snapshot: Snapshot) -> None:
        """Let the kernels keep nothing more for a snapshot."""
        if self.snapshot is snapshot:
            snapshot.detach()
            if self.snapshot is snapshot:
                self.snapshot = None

    def places(self, table: int) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
        """Return the address and stride of a table's rows, and of its states with their formats."""
        rows, *places = self.tables[table].places()
        optimizer = self.settings.optimizers[table]
        states = () if optimizer is None else optimizer.states
        formats = [registry.FORMATS[state.precision] for state in states]
        return rows, [(*place, kind) for place, kind in zip(places, formats, strict=True)]

    def _memory(self) -> dict[str, Array]:
        """Return what is allocated, by the name of an array in it."""
        return {name: stored.memory for name, stored in reversed(self.arrays().items())}

    def refuse_own_memory(self, values: View | dict[str, View]) -> None:
        """Raise ValueError if an argument lies in these arrays, which its call changes."""
        if self._spans is None:  # they are never moved
            owned = {array_ops.address(a): (a.nbytes, name) for name, a in self._memory().items()}
            self._spans = sorted((begin, *rest) for begin, rest in owned.items())
        for one in values.values() if isinstance(values, dict) else (values,):
            # The last array that begins before the argument ends.
            at = bisect.bisect_left(self._spans, (one.address + one.nbytes,)) - 1
            if one.size and at >= 0:
                begin, nbytes, name = self._spans[at]
                if one.address < begin + nbytes:
                    raise ValueError(
                        f"{one.name}: shares memory with the collection's {name!r}; copy it first"
                    )


def cache_shapes(
    config: CacheConfig, table_rows: int, group: GroupPlan
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the type and shape of each array of a cache."""
    slots = config.sets_for(table_rows), config.ways
    found: dict[str, tuple[Any, tuple[int, ...]]] = {
        "tags": (np.uint64, slots),
        "meta": (np.uint32, slots),
        "rows": (np.float32, (*slots, group.slot_floats)),
        "counters": (np.uint64, (2,)),
    }
    if group.slot_values > 0:
        found["values"] = np.float32, (*slots, group.slot_values)
    if kernels.policy_has_sketch(registry.POLICIES[config.policy]):
        width = 1 << (slots[0] * slots[1] - 1).bit_length()
        found["sketch"] = np.uint8, (contract.SKETCH_ROWS, width)
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in found.items()}


def table_fields(config: TableConfig, optimizer: Optimizer | None) -> list[Field]:
    """Return what is stored of each row of a table."""
    width = registry.row_bytes(config.precision, config.embedding_dim)
    fields = [Field("rows", (width,), np.dtype(np.uint8))]
    for state in () if optimizer is None else optimizer.states:
        element = state.shape == registry.STATE_ELEMENT
        initial = np.float32(state.initial)
        fields.append(
            Field(
                state.name,
                (config.embedding_dim,) if element else (),
                np.dtype(_STATE_DTYPES[state.precision]),
                initial if state.precision == "fp32" else kernels.bf16_bits(float(initial)),
            )
        )
    return fields


def logical_arrays(settings: Settings) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the type and shape of every array that a collection has, by name."""
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for config, optimizer in zip(settings.tables, settings.optimizers, strict=True):
        for one in table_fields(config, optimizer):
            found[f"table.{config.name}.{one.name}"] = (
                one.dtype,
                (config.num_embeddings, *one.shape),
            )
    for group in grouping.plan(settings):
        if group.cached and settings.cache is not None:
            rows = sum(settings.tables[i].num_embeddings for i in group.tables)
            shapes = cache_shapes(settings.cache, rows, group)
            found |= {f"cache.{group.label}.{name}": one for name, one in shapes.items()}
    for name, entries in (("stats", registry.STATS), ("noise", registry.NOISE_SUMS)):
        found[name] = np.dtype(np.int64), (len(settings.tables), len(entries))
    return found


def leading_dimensions(name: str) -> int:
    """Return how many dimensions of an array count rows of a table, or slots of a cache.

    0 where it has neither, or its kernels write more than the rows that a batch asks for: tags and
    policy state change at every forward.
    """
    owner, _, own = name.rpartition(".")
    if owner.startswith("table."):
        return 1
    return 2 if owner.startswith("cache.") and own in ("rows", "values") else 0  # by set and way


def allocate(settings: Settings) -> Storage:
    """Allocate a collection; the rows are not drawn yet."""
    configs, device = settings.tables, settings.device
    plans = grouping.plan(settings)
    for plan in plans:  # first: an optimizer of the user's own may not compile
        if plan.optimizer is not None:
            precisions = frozenset(configs[i].precision for i in plan.tables)
            plan.optimizer.prepare(device, plan.dim, precisions)
    tables = [
        Records(
            config.num_embeddings,
            table_fields(config, optimizer),
            device,
            host=config.placement == "host",
        )
        for config, optimizer in zip(configs, settings.optimizers, strict=True)
    ]
    stats, noise = (
        array_ops.full(device, (len(configs), len(entries)), np.int64, 0)
        for entries in (registry.STATS, registry.NOISE_SUMS)
    )
    on = device.stream(None)
    steps = kernels.StepCounter(on, 0, permanent=True)
    rules = kernels.UpdateRules(on, len(configs), 0, permanent=True)
    errors = kernels.DeviceErrors(on, len(plans), permanent=True)
    storage = Storage(device, steps, rules, errors, settings, tables, stats, noise)
    first = 0
    for number, plan in enumerate(plans):
        group = _allocate_group(storage, number, plan, first, on)
        storage.groups.append(group)
        storage.changes.groups.append(_written(group, configs))
        first += len(plan.tables)
    return storage


def _allocate_group(
    storage: Storage, number: int, plan: GroupPlan, first: int, on: Stream
) -> GroupStorage:
    """Return a group whose first table is the first-th of all groups' tables."""
    settings = storage.settings
    rounding = registry.ROUNDINGS[settings.rounding]
    group = kernels.Group(
        storage.steps, number, len(plan.tables), plan.dim, rounding, settings.seed
    )
    columns = np.cumsum([0] + [config.embedding_dim for config in settings.tables])
    for i in plan.tables:
        config = settings.tables[i]
        (rows, stride), states = storage.places(i)
        group.add_table(
            config.name,
            config.num_embeddings,
            rows,
            stride,
            states=states,
            stats=array_ops.row(storage.stats, i),
            noise=array_ops.row(storage.noise, i),
            precision=registry.FORMATS[config.precision],
            pooling=registry.POOLINGS[config.pooling],
            table_id=settings.table_id(i),
            first_row=config.first_row,
            feature=i,
            column=int(columns[i]),
            host=config.placement == "host",
        )
        group.keep_alive(*storage.tables[i].memory())
    if plan.optimizer is not None:
        group.set_optimizer(storage.rules, first, *plan.optimizer.kernel_kind())
    cached = None
    if plan.cached and settings.cache is not None:
        cached = CacheArrays.allocate(settings.cache, group.total_rows, plan, storage.device)
        group.set_cache(
            cached.tags,
            cached.meta,
            cached.rows,
            cached.values,
            cached.sketch,
            cached.counters,
            registry.POLICIES[settings.cache.policy],
        )
    group.upload_descriptors(on, permanent=True)
    return GroupStorage(plan, group, cached)


def _written(group: GroupStorage, configs: tuple[TableConfig, ...]) -> WrittenGroup:
    """Return what the kernels write of a group, by name, and how much of each."""
    tables = {f"table.{configs[i].name}": configs[i].num_embeddings for i in group.plan.tables}
    slots = None if group.cache is None else group.cache.tags.size
    return WrittenGroup(group.kernels, tables, f"cache.{group.plan.label}", slots)


def draw_initial_rows(storage: Storage) -> None:
    """Fill every table with its initial rows."""
    on = storage.device.stream(None)
    for group in storage.groups:
        for position, table in enumerate(group.plan.tables):
            kind, a, b = storage.configs[table].init_parameters()
            group.kernels.init_rows(position, registry.INITS[kind], a, b, on)
