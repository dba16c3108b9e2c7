"""Changed bits: exactly the rows and slots that a call writes, no more and no fewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kinds
import numpy as np
import numpy.typing as npt
import on_device
import pytest
from changed_bits import changed, stop_tracking, track

import mpembed as mpe
from mpembed._bindings import contract
from mpembed.collection import collection_state

ROWS = {"a": 150, "b": 70}
PRECISIONS = list(mpe.registry.FORMATS)
each_device = pytest.mark.usefixtures("each_device")


def make(kind: str = "rowwise_adagrad", dim: int = 6, number: int = 0, **options: Any) -> Any:
    """Return two tables of one group, with precisions that follow the number."""
    tables = [
        mpe.TableConfig(name, rows, dim, PRECISIONS[(number + i) % len(PRECISIONS)])
        for i, (name, rows) in enumerate(ROWS.items())
    ]
    return on_device.make(tables, **{"optimizer": kinds.named(kind)} | options)


def inputs(seed: int) -> tuple[Any, Any]:
    """Return a batch of 20 bags a table, with duplicates."""
    rng = np.random.default_rng(seed)
    indices = [rng.integers(rows, size=40) for rows in ROWS.values()]
    return np.concatenate(indices), np.arange(0, 81, 2)


def linear(indices: npt.NDArray[Any]) -> set[int]:
    """Return the linear row ids of such a batch."""
    return {*indices[:40].tolist(), *(indices[40:] + ROWS["a"]).tolist()}


def bits(bitmap: npt.NDArray[np.uint32], count: int) -> set[int]:
    """Return which of the bits are set; none lies beyond the last."""
    found = np.unpackbits(bitmap.view(np.uint8), bitorder="little")
    assert not found[count:].any()
    return set(np.flatnonzero(found[:count]).tolist())


class Written:
    """What a call wrote by its bits, and the arrays before and after it."""

    def __init__(self, emb: Any, call: Callable[[], Any]) -> None:
        self.before = {name: np.copy(array) for name, array in emb.state_arrays().items()}
        track(emb)
        self.result = call()
        bitmaps = changed(emb)
        stop_tracking(emb)
        self.after = {name: np.copy(array) for name, array in emb.state_arrays().items()}
        rows = [(name, bits(bitmaps.pop(f"table.{name}"), n)) for name, n in ROWS.items()]
        self.rows = {i + (name == "b") * ROWS["a"] for name, found in rows for i in found}
        self.slots: set[int] = set()
        for bitmap in bitmaps.values():
            self.slots = bits(bitmap, self.tags(self.before).size)
        self.check_bytes()

    def tags(self, arrays: dict[str, Any]) -> npt.NDArray[np.uint64]:
        """Return the cache's tags; none without a cache."""
        name = next((name for name in arrays if name.endswith(".tags")), None)
        return np.zeros(0, np.uint64) if name is None else arrays[name].reshape(-1)

    def differing(self, name: str) -> set[int]:
        """Return the first dimension's elements of an array whose bytes differ."""
        old, new = self.before[name], self.after[name]
        count = self.tags(self.before).size if name.startswith("cache.") else len(old)
        pair = [a.reshape(count, -1).view(np.uint8) for a in (old, new)]
        return set(np.flatnonzero((pair[0] != pair[1]).any(axis=1)).tolist())

    def check_bytes(self) -> None:
        """Whatever differs has its bit."""
        for name in self.before:
            first = ROWS["a"] if name.startswith("table.b.") else 0
            if name.startswith("table."):
                assert {first + i for i in self.differing(name)} <= self.rows, name
            elif name.endswith((".rows", ".values")):
                assert self.differing(name) <= self.slots, name

    def cached(self) -> dict[int, int]:
        """Return the slots of the rows that were cached before, by linear row id."""
        ids = (self.tags(self.before) & np.uint64(contract.ID_MASK)).tolist()
        return {row: slot for slot, row in enumerate(ids) if row != contract.EMPTY_TAG}

    def dirty(self) -> set[int]:
        """Return the dirty slots before."""
        marks = self.tags(self.before) & np.uint64(contract.DIRTY_BIT)
        return set(np.flatnonzero(marks).tolist())

    def admitted(self) -> set[int]:
        """Return the slots that hold another row now."""
        mask = np.uint64(contract.ID_MASK)
        old, new = self.tags(self.before) & mask, self.tags(self.after) & mask
        return set(np.flatnonzero(old != new).tolist())


def check_forward(emb: Any, seed: int) -> npt.NDArray[Any]:
    written = Written(emb, lambda: emb.forward(*inputs(seed)))
    owners = {slot: row for row, slot in written.cached().items()}
    assert written.slots == written.admitted()
    assert written.rows == {owners[slot] for slot in written.admitted() & written.dirty()}
    return np.asarray(written.result)


def check_backward(emb: Any, seed: int, out: npt.NDArray[Any]) -> None:
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal(out.shape).astype(np.float32)
    written = Written(emb, lambda: emb.backward(grad))
    rows, cached = linear(inputs(seed)[0]), written.cached()
    assert written.slots == {cached[row] for row in rows & {*cached}}
    assert written.rows == rows - {*cached}


def check_set(emb: Any, ids: npt.NDArray[Any], call: Callable[[], Any]) -> None:
    """Check a call that sets rows of the first table, some of which are cached."""
    written = Written(emb, call)
    cached = written.cached()
    assert written.slots == {cached[i] for i in ids.tolist() if i in cached}
    assert written.rows == {i for i in ids.tolist() if i not in cached}
    assert min(len(written.slots), len(written.rows)) > 0


@each_device
@pytest.mark.parametrize("number", range(len(kinds.NAMES)), ids=kinds.NAMES)
def test_bits_are_those_of_the_rows_and_slots_that_are_written(number: int) -> None:
    cache = (
        None if number % 4 == 3 else mpe.CacheConfig(num_sets=1, policy=["lru", "lfu"][number % 2])
    )
    emb = make(kinds.NAMES[number], number=number, cache=cache)
    for seed in range(4):
        check_backward(emb, seed, check_forward(emb, seed))
    written = Written(emb, emb.flush)
    owners = {slot: row for row, slot in written.cached().items()}
    assert written.slots == set()
    assert written.rows == {owners[slot] for slot in written.dirty()}
    assert len(written.rows) > 0 or cache is None


@each_device
@pytest.mark.parametrize("precision", PRECISIONS)
def test_set_rows_marks_them_where_they_are(precision: str) -> None:
    emb = make(number=PRECISIONS.index(precision), cache=mpe.CacheConfig(num_sets=1))
    emb.forward(*inputs(1))
    ids = np.arange(3, 150, 2)
    values = np.full((len(ids), 6), 0.25, np.float32)
    check_set(emb, ids, lambda: emb.set_rows("a", ids, values))


@each_device
@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_set_state_marks_them_where_they_are(kind: str) -> None:
    emb = make(kind, cache=mpe.CacheConfig(num_sets=1))
    emb.forward(*inputs(1))
    ids = np.arange(3, 150, 2)
    states = {name: np.full_like(one, 0.25) for name, one in emb.state("a", ids).items()}
    check_set(emb, ids, lambda: emb.set_state("a", ids, states))


@each_device
def test_long_rows() -> None:
    emb = make(dim=300, number=PRECISIONS.index("int8"), cache=mpe.CacheConfig(num_sets=1))
    for seed in range(3):
        check_backward(emb, seed, check_forward(emb, seed))


@each_device
def test_evaluation_and_rows_that_are_left_out_have_no_bits() -> None:
    emb = make(cache=mpe.CacheConfig(num_sets=1), on_nonfinite="skip")
    out = check_forward(emb, 0)
    written = Written(emb, lambda: emb.forward(*inputs(1), training=False))
    assert (written.rows, written.slots) == (set(), set())
    grad = np.full_like(out, np.nan)
    written = Written(emb, lambda: emb.backward(grad))
    assert (written.rows, written.slots) == (set(), set())


@each_device
def test_what_is_restored_is_all_changed() -> None:
    emb = make(cache=mpe.CacheConfig(num_sets=1))
    state = collection_state(getattr(emb, "emb", emb))
    arrays = {name: np.copy(array) for name, array in emb.state_arrays().items()}
    with state.reading() as on:
        counters = state.counters(on)
    written = Written(emb, lambda: state.restore(arrays, counters, 0))
    assert len(written.rows) == sum(ROWS.values())
    assert len(written.slots) == written.tags(written.before).size


def test_bits_add_up_until_they_are_forgotten_and_are_counted() -> None:
    emb = make(cache=mpe.CacheConfig(num_sets=1))
    plain = emb.memory_report()
    track(emb)
    report = emb.memory_report()
    assert report["change_tracking"] == 4 * (5 + 3 + 1)
    assert report["total"] == plain["total"] + report["change_tracking"]
    seen: list[set[int]] = []
    for seed in range(3):
        emb.backward(np.ones_like(emb.forward(*inputs(seed))))
        seen.append(bits(changed(emb)["cache.6.rowwise_adagrad"], 32))
    assert seen[0] <= seen[1] <= seen[2]
    track(emb)
    assert not any(bitmap.any() for bitmap in changed(emb).values())
    stop_tracking(emb)
    with pytest.raises(RuntimeError, match=r"call track_changes\(\) first"):
        changed(emb)
    assert emb.memory_report() == plain


@each_device
def test_tracking_changes_no_byte() -> None:
    tracked, plain = (make(cache=mpe.CacheConfig(num_sets=1)) for _ in range(2))
    track(tracked)
    for seed in range(3):
        for emb in (tracked, plain):
            emb.backward(np.ones_like(emb.forward(*inputs(seed))))
    for name, array in plain.state_arrays().items():
        assert np.asarray(array).tobytes() == np.asarray(tracked.state_arrays()[name]).tobytes()
