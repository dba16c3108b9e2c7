"""The arrays of a collection; Python owns them, kernels get views."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpembed import registry
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.array_ops import Array
from mpembed._bindings.device import Device
from mpembed._bindings.view import View
from mpembed._collection.settings import Settings
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import Optimizer

_STATE_DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": np.uint16}


@dataclass
class CacheArrays:
    """A group's cache: 12 bytes of metadata a slot, the FP32 rows, and LFU's sketch."""

    tags: Array
    meta: Array
    rows: Array
    counters: Array
    sketch: Array | None

    @classmethod
    def allocate(
        cls, config: CacheConfig, table_rows: int, dim: int, device: Device
    ) -> "CacheArrays":
        """Return an empty cache for a group with this many table rows."""
        sets, ways = config.sets_for(table_rows), config.ways
        sketch = None
        if kernels.policy_has_sketch(registry.POLICIES[config.policy]):
            width = 1 << (sets * ways - 1).bit_length()
            sketch = array_ops.full(device, (contract.SKETCH_ROWS, width), np.uint8, 0)
        return cls(
            tags=array_ops.full(device, (sets, ways), np.uint64, contract.EMPTY_TAG),
            meta=array_ops.full(device, (sets, ways), np.uint32, 0),
            rows=array_ops.full(device, (sets, ways, dim), np.float32, 0),
            counters=array_ops.full(device, (2,), np.uint64, 0),
            sketch=sketch,
        )

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        named = {name: getattr(self, name) for name in ("tags", "meta", "rows", "counters")}
        return named if self.sketch is None else {**named, "sketch": self.sketch}


@dataclass
class GroupStorage:
    """The tables of one dimension and their cache."""

    dim: int
    table_ids: list[int]
    kernels: kernels.Group
    cache: CacheArrays | None


@dataclass
class Storage:
    """All arrays of a collection, its write step, and what its kernels found wrong."""

    device: Device
    steps: kernels.StepCounter
    device_errors: kernels.DeviceErrors
    configs: Sequence[TableConfig]
    rows: list[Array]
    states: list[Array | None]
    stats: Array
    groups: list[GroupStorage] = field(default_factory=list)
    _spans: list[tuple[int, int, str]] | None = None

    def arrays(self) -> dict[str, Array]:
        """Return every array that is state, by name: no copies, and writable."""
        named: dict[str, Array] = {}
        for config, rows, state in zip(self.configs, self.rows, self.states, strict=True):
            named[f"table.{config.name}.rows"] = rows
            if state is not None:
                named[f"table.{config.name}.state"] = state
        for group in self.groups:
            if group.cache is not None:
                for key, array in group.cache.arrays().items():
                    named[f"cache.{group.dim}.{key}"] = array
        named["stats"] = self.stats
        return named

    def refuse_own_memory(self, values: View | dict[str, View]) -> None:
        """Raise ValueError if a float32 argument lies in these arrays, which its call changes."""
        if self._spans is None:  # they are never moved
            spans = ((array_ops.address(a), a.nbytes, name) for name, a in self.arrays().items())
            self._spans = sorted(spans)
        for one in values.values() if isinstance(values, dict) else (values,):
            # The last array that begins before the argument ends.
            at = bisect.bisect_left(self._spans, (one.address + 4 * one.size,)) - 1
            if one.size and at >= 0:
                begin, nbytes, name = self._spans[at]
                if one.address < begin + nbytes:
                    raise ValueError(
                        f"{one.name}: shares memory with the collection's {name!r}; copy it first"
                    )


def _allocate_state(config: TableConfig, optimizer: Optimizer, device: Device) -> Array | None:
    shape: tuple[int, ...] = (config.num_embeddings,)
    if optimizer.state_shape == registry.STATE_NONE:
        return None
    if optimizer.state_shape == registry.STATE_ELEMENT:
        shape = (*shape, config.embedding_dim)
    start = np.float32(optimizer.initial_accumulator_value)
    precision = optimizer.state_precision
    value = start if precision == "fp32" else kernels.bf16_bits(float(start))
    host = config.placement == "host"
    return array_ops.full(device, shape, _STATE_DTYPES[precision], value, host=host)


def allocate(settings: Settings) -> Storage:
    """Allocate a collection; the rows are not drawn yet."""
    configs, cache, device = settings.tables, settings.cache, settings.device
    optimizer = settings.optimizer
    rows, states = [], []
    for config in configs:
        shape = config.num_embeddings, registry.row_bytes(config.precision, config.embedding_dim)
        host = config.placement == "host"
        rows.append(array_ops.empty(device, shape, np.uint8, host=host))
        states.append(_allocate_state(config, optimizer, device))
    stats = array_ops.full(device, (len(configs), len(registry.STATS)), np.int64, 0)
    dims = sorted({config.embedding_dim for config in configs})
    on = device.stream(None)
    steps = kernels.StepCounter(on, 0, permanent=True)
    errors = kernels.DeviceErrors(on, len(dims), permanent=True)
    storage = Storage(device, steps, errors, configs, rows, states, stats)
    columns = np.cumsum([0] + [config.embedding_dim for config in configs])
    for number, dim in enumerate(dims):
        ids = [i for i, config in enumerate(configs) if config.embedding_dim == dim]
        group = kernels.Group(
            steps, number, len(ids), dim, registry.ROUNDINGS[settings.rounding], settings.seed
        )
        for i in ids:
            group.add_table(
                configs[i].name,
                rows[i],
                states[i],
                array_ops.row(stats, i),
                registry.FORMATS[configs[i].precision],
                i,
                registry.POOLINGS[configs[i].pooling],
                registry.FORMATS[optimizer.state_precision],
                int(columns[i]),
            )
        cached = None
        if cache is not None:
            cached = CacheArrays.allocate(cache, group.total_rows, dim, device)
            group.set_cache(
                cached.tags,
                cached.meta,
                cached.rows,
                cached.sketch,
                cached.counters,
                registry.POLICIES[cache.policy],
            )
        group.upload_descriptors(on, permanent=True)
        storage.groups.append(GroupStorage(dim, ids, group, cached))
    return storage


def draw_initial_rows(storage: Storage) -> None:
    """Fill every table with its initial rows."""
    on = storage.device.stream(None)
    for group in storage.groups:
        for position, table in enumerate(group.table_ids):
            kind, a, b = storage.configs[table].init_parameters()
            group.kernels.init_rows(position, registry.INITS[kind], a, b, on)
