"""Where an array cannot be allocated, MemoryError is raised and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, digest

import mpembed as mpe
from mpembed._bindings import device, kernels
from mpembed.collection import collection_state

OFFSETS = np.array([0, 2, 3, 5, 6])
INDICES, OTHERS = np.array([1, 2, 1, 3, 8, 3]), np.array([5, 6, 7, 0, 4, 8])
WEIGHTS = np.linspace(0.5, 1, 6, dtype=np.float32)


def two_groups(cached: bool) -> mpe.EmbeddingBagCollection:
    """Return two tables of different dimension, each a group of its own, with an open batch."""
    tables = [mpe.TableConfig("a", 9, 4, "int8"), mpe.TableConfig("b", 9, 3, "int4")]
    cache = mpe.CacheConfig(num_sets=1, ways=8, policy="lru") if cached else None
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adagrad(0.1))
    emb.prefetch(OTHERS, OFFSETS)
    emb.forward(INDICES, OFFSETS, WEIGHTS)
    return emb


CALLS: dict[str, Callable[[mpe.EmbeddingBagCollection], Any]] = {
    "forward": lambda e: e.forward(INDICES + 0, OFFSETS, WEIGHTS),
    "prefetched": lambda e: e.forward(OTHERS, OFFSETS),
    "evaluate": lambda e: e.forward(INDICES, OFFSETS, training=False),
    "dict": lambda e: e.forward({"a": (INDICES, OFFSETS), "b": (OTHERS, OFFSETS)}),
    "prefetch": lambda e: e.prefetch(INDICES, OFFSETS),
    "backward": lambda e: e.backward(np.ones((2, 7), np.float32)),
    "rows": lambda e: e.rows("b", np.array([1, 4])),
}


class NumpyFails:
    """`np.empty` that fails at its n-th call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.left, self.real = fails_at, np.empty
        monkeypatch.setattr(np, "empty", self)

    def __call__(self, *arguments: Any, **options: Any) -> Array:
        self.left -= 1
        if self.left == 0:
            raise MemoryError("no memory")
        return self.real(*arguments, **options)


class WorkspaceFails:
    """Workspace that fails at its n-th allocation."""

    def __init__(self, _: pytest.MonkeyPatch, fails_at: int) -> None:
        device.fail_borrow(fails_at)

    @property
    def left(self) -> int:
        return device.fail_borrow(0)


@pytest.mark.parametrize("allocator", [NumpyFails, WorkspaceFails])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_failed_allocation_changes_nothing(
    name: str, cached: bool, allocator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, expected = CALLS[name], two_groups(cached)
    result = call(expected)
    fails_at = 0
    while True:
        emb, fails_at = two_groups(cached), fails_at + 1
        before, open_batches = digest(emb), collection_state(emb).engine.num_open
        with monkeypatch.context() as patched:
            failing = allocator(patched, fails_at)
            try:
                call(emb)
            except MemoryError:
                failed = True
            else:
                failed = False
            left = failing.left
        if not failed:
            break
        assert digest(emb) == before
        assert collection_state(emb).engine.num_open == open_batches
        again = call(emb)  # what was open still is, and a second try does what the first should
        if isinstance(result, np.ndarray):
            np.testing.assert_array_equal(again, result)
        assert digest(emb) == digest(expected)
    assert left > 0
    assert fails_at > 1 or (allocator is NumpyFails and name == "prefetch")


class Flaky(kernels.Group):
    """A group one of whose kernels finds no memory for its workspace, if so told."""

    fails = ""

    def admit(self, *arguments: Any) -> None:
        self.check("admit")
        super().admit(*arguments)

    def scatter(self, *arguments: Any) -> None:
        self.check("scatter")
        super().scatter(*arguments)

    def update(self, *arguments: Any) -> None:
        self.check("update")
        super().update(*arguments)

    def flush(self, *arguments: Any) -> None:
        self.check("flush")
        super().flush(*arguments)

    def keys(self, *arguments: Any) -> Any:
        self.check("keys")
        return super().keys(*arguments)

    def write_rows(self, *arguments: Any) -> None:
        self.check("write_rows")
        super().write_rows(*arguments)

    def check(self, name: str) -> None:
        if self.fails == name:
            raise MemoryError(name)


def flaky_lookup(groups: Any, *arguments: Any) -> None:
    """The forward of all groups, for want of memory where one of them says so."""
    for group in groups:
        group.check("lookup")
    LOOKUP(groups, *arguments)


LOOKUP = kernels.lookup


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> mpe.EmbeddingBagCollection:
    monkeypatch.setattr(kernels, "Group", Flaky)
    monkeypatch.setattr(kernels, "lookup", flaky_lookup)
    emb = two_groups(True)
    emb.drop_prefetched()
    return emb


GRAD = np.ones((2, 7), np.float32)


WRITES: dict[str, Callable[[mpe.EmbeddingBagCollection], Any]] = {
    "update": lambda e: e.backward(GRAD),
    "flush": lambda e: e.flush(),
    "keys": lambda e: e.set_rows("b", np.array([1, 4]), np.ones((2, 3), np.float32)),
    "write_rows": lambda e: e.set_rows("b", np.array([1, 4]), np.ones((2, 3), np.float32)),
}


@pytest.mark.parametrize("kernel", WRITES)
def test_nothing_has_changed_if_the_first_kernel_fails(
    kernel: str, flaky: mpe.EmbeddingBagCollection
) -> None:
    before, first = digest(flaky), collection_state(flaky).engine.groups[0]
    first.fails = kernel  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        WRITES[kernel](flaky)
    assert digest(flaky) == before
    first.fails = ""  # type: ignore[attr-defined]
    flaky.backward(GRAD)


def test_no_row_is_updated_twice_if_a_later_kernel_fails(
    flaky: mpe.EmbeddingBagCollection,
) -> None:
    step, second = flaky.step, collection_state(flaky).engine.groups[1]
    second.fails = "update"  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        flaky.backward(GRAD)
    assert flaky.step == step + 1
    with pytest.raises(RuntimeError, match="used already"):
        flaky.backward(GRAD)


@pytest.mark.parametrize("kernel", ["admit", "scatter", "lookup"])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_forward_whose_kernel_fails_leaves_no_pins(
    broken: int, kernel: str, flaky: mpe.EmbeddingBagCollection
) -> None:
    group = collection_state(flaky).engine.groups[broken]
    group.fails = kernel  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        flaky.forward(INDICES, OFFSETS)
    assert collection_state(flaky).engine.num_open == 0
    for dim in (3, 4):
        tags = flaky.state_arrays()[f"cache.{dim}.tags"]
        assert not (tags & np.uint64(0x7F << 56)).any()
    group.fails = ""  # type: ignore[attr-defined]
    flaky.forward(INDICES, OFFSETS)
    flaky.backward(GRAD)
