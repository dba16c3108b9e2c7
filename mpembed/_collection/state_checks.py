"""Checks of a collection's arrays that come from elsewhere, before kernels trust them.

Training keeps every row and state finite and within its format, every cached row once and in its
set. Kernels rely on that: two slots of one row would be written back at once, and an id outside the
tables would be written anywhere.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mpembed import devices, registry
from mpembed._bindings import contract, kernels
from mpembed._bindings.dlpack import view
from mpembed._collection import grouping
from mpembed._collection.grouping import GroupPlan
from mpembed._collection.settings import Settings
from mpembed._collection.storage import cache_shapes, table_fields

Values: TypeAlias = npt.NDArray[Any]
Numbers: TypeAlias = Sequence[int] | npt.NDArray[np.int64]


class StateChecks:
    """Checks every array of a state, in pieces; a cache's tags come before its rows.

    Parameters
    ----------
    settings : Settings
        Of the collection whose arrays they are.
    """

    def __init__(self, settings: Settings) -> None:
        self._checks: dict[str, Callable[[int, Values], None]] = {"stats": _check_stats}
        self._packed: dict[str, Callable[[Numbers, Values], None]] = {}
        for config, optimizer in zip(settings.tables, settings.optimizers, strict=True):
            states = () if optimizer is None else optimizer.states
            precisions = config.precision, *(state.precision for state in states)
            fields = table_fields(config, optimizer)
            for one, precision in zip(fields, precisions, strict=True):
                dim = config.embedding_dim if one.name == "rows" else max(1, *one.shape, 1)
                name = f"table.{config.name}.{one.name}"
                self._packed[name] = partial(_check_packed, name, precision, dim)
        for plan in grouping.plan(settings):
            if plan.cached and settings.cache is not None:
                self._checks.update(_CacheChecks(settings, plan).by_name())

    def piece(self, name: str, begin: int, values: Values) -> None:
        """Raise ValueError where elements of an array, from `begin` on, are damaged."""
        check = self._checks.get(name)
        if check is not None and len(values) > 0:
            check(begin, values)
        self.rows(name, range(begin, begin + len(values)), values)

    def rows(self, name: str, numbers: Numbers, values: Values) -> None:
        """Raise ValueError where rows of a table, or states of rows, are damaged; by number."""
        check = self._packed.get(name)
        if check is not None and len(values) > 0:
            check(numbers, values)


class _CacheChecks:
    """Checks of one group's cache."""

    def __init__(self, settings: Settings, plan: GroupPlan) -> None:
        assert settings.cache is not None
        configs = [settings.tables[table] for table in plan.tables]
        self._label = f"cache.{plan.label}."
        self._dim, self._total = plan.dim, sum(config.num_embeddings for config in configs)
        shapes = cache_shapes(settings.cache, self._total, plan)
        self._lfu = "sketch" in shapes
        self._tags = np.empty(shapes["tags"][1], np.uint64)
        self._names = [config.name for config in configs]
        self._first_rows = np.array(list(grouping.first_keys(plan, settings).values()))
        self._precisions = np.array([registry.FORMATS[config.precision] for config in configs])

    def by_name(self) -> dict[str, Callable[[int, Values], None]]:
        checks = {
            "tags": self._check_tags,
            "meta": self._check_meta,
            "rows": self._check_rows,
            "values": self._check_values,
            "counters": self._check_counters,
        }
        return {self._label + name: check for name, check in checks.items()}

    def _check_tags(self, begin: int, tags: Values) -> None:
        self._tags[begin : begin + len(tags)] = tags
        if begin + len(tags) == len(self._tags):
            check_tags(self._label + "tags", self._tags, self._total)

    def _check_meta(self, begin: int, meta: Values) -> None:
        if self._lfu and (meta > contract.MAX_COUNT).any():
            raise ValueError(f"{self._label}meta has a count above {contract.MAX_COUNT}")

    def _check_counters(self, begin: int, counters: Values) -> None:
        most = contract.HALVING_PERIOD * self._tags.size if self._lfu else 1
        if int(counters[-1]) >= most:
            raise ValueError(f"{self._label}counters has more samples than a cache counts")

    def _check_rows(self, begin: int, rows: Values) -> None:
        """Check slots with their states: each row has to fit into its table."""
        name, ways = self._label + "rows", rows.shape[1]
        self._check_slots(name, begin * ways, rows)
        ids = self._tags[begin : begin + len(rows)] & np.uint64(contract.ID_MASK)
        used = ids != contract.EMPTY_TAG
        slots, found = begin * ways + np.flatnonzero(used), ids[used].astype(np.int64)
        table = np.searchsorted(self._first_rows, found, "right") - 1
        precisions, cached = self._precisions[table], rows[..., : self._dim][used]
        for number in np.unique(precisions):
            of, here = _PRECISIONS[int(number)], np.flatnonzero(precisions == number)
            wrong = first_unstorable(cached[here], of)
            if wrong is not None:
                place = here[wrong]
                owner, row = table[place], found[place] - self._first_rows[table[place]]
                raise ValueError(
                    f"{name}: slot {slots[place]}, which holds row {row} of table "
                    f"{self._names[owner]!r}, exceeds the range of {of}"
                )

    def _check_values(self, begin: int, values: Values) -> None:
        self._check_slots(self._label + "values", begin * values.shape[1], values)

    def _check_slots(self, name: str, first: int, values: Values) -> None:
        wrong = first_unstorable(values.reshape(-1, values.shape[-1]), "fp32")
        if wrong is not None:
            raise ValueError(f"{name}: slot {first + wrong} is not finite")


_PRECISIONS = {number: name for name, number in registry.FORMATS.items()}


def check_tags(name: str, tags: npt.NDArray[np.uint64], total_rows: int) -> None:
    """Raise ValueError unless each slot is empty, or holds a row once, in its set, unpinned."""
    ids = tags & np.uint64(contract.ID_MASK)
    used = ids != contract.EMPTY_TAG
    rows = ids[used]
    if (tags[~used] != contract.EMPTY_TAG).any() or (
        tags & ~np.uint64(contract.ID_MASK | contract.DIRTY_BIT)
    ).any():
        raise ValueError(f"{name}: its cache tags are damaged")
    if (rows >= total_rows).any():
        raise ValueError(f"{name}: its cache tags are damaged: a row that no table has")
    # A kernel finds a row in the last slot of its set that has it, and in no other set.
    on = devices.CPU.stream(None)
    found = np.empty(len(rows), np.int32)
    if len(rows) > 0:
        kernels.cache_lookup(view(tags, name), kernels.Keys(rows, on), view(found, name), on)
    if (found != np.flatnonzero(used)).any():
        raise ValueError(f"{name}: its cache tags are damaged: a row twice, or not in its set")


def _check_stats(begin: int, stats: Values) -> None:
    if (stats < 0).any():
        raise ValueError("stats has a count below 0")


def _check_finite(name: str, numbers: Numbers, values: Values, precision: str = "fp32") -> None:
    """Raise ValueError where FP32 rows (n, dim) with these numbers do not fit a precision."""
    wrong = first_unstorable(values, precision)
    if wrong is not None:
        raise ValueError(
            f"{name}: row {numbers[wrong]} is not finite or exceeds the range of {precision}"
        )


def first_unstorable(values: Values, precision: str) -> int | None:
    """Return the first of FP32 rows (n, dim) that does not fit a precision."""
    n, dim = values.shape
    if n == 0:
        return None
    held, on = view(np.ascontiguousarray(values), "rows"), devices.CPU.stream(None)
    found = kernels.unstorable(held, n, dim, registry.FORMATS[precision], on)
    return None if found is None else found[0]


def _check_packed(name: str, precision: str, dim: int, numbers: Numbers, packed: Values) -> None:
    """Raise ValueError where packed rows do not decode to what their format can hold."""
    n = len(packed)
    rows = np.ascontiguousarray(packed).reshape(n, -1).view(np.uint8)
    if precision == "fp32":
        return _check_finite(name, numbers, rows.view(np.float32))
    header = registry.code_bytes(precision, dim)
    if header < rows.shape[1]:  # the values lie between those of the first and the last code
        codes = _end_codes(precision)
        ends = np.empty((n, len(codes) + rows.shape[1] - header), np.uint8)
        ends[:, : len(codes)] = codes
        ends[:, len(codes) :] = rows[:, header:]
        rows, dim = ends, 2
    on, values = devices.CPU.stream(None), np.empty((n, dim), np.float32)
    number = registry.FORMATS[precision]
    kernels.dequantize(view(rows, name), n, dim, number, view(values, name), on)
    return _check_finite(name, numbers, values, precision)


@cache
def _end_codes(precision: str) -> npt.NDArray[np.uint8]:
    """Return the first and the last code of a format with a scale, as they are packed."""
    on, ends = devices.CPU.stream(None), np.array([[0, 1]], np.float32)
    packed = np.empty((1, registry.row_bytes(precision, 2)), np.uint8)
    nearest, number = registry.ROUNDINGS["nearest"], registry.FORMATS[precision]
    kernels.quantize(view(ends, "x"), 1, 2, number, nearest, 0, 0, view(packed, "rows"), on)
    return packed[0, : registry.code_bytes(precision, 2)]
