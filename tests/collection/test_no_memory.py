"""Where an array cannot be allocated, MemoryError is raised and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from copied_backend import CopiedBackend
from helpers import Array, digest

import mpembed as mpe
from mpembed import devices
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


NO_MEMORY = 4
# The functions that work in memory of their own, and how many arguments they have.
ARGUMENTS = {"cache_admit": 8, "lookup": 3, "update": 9, "cache_flush": 2, "write_rows": 5}


class FailingBackend:
    """The CPU's functions, of which one finds no memory from its n-th call on, if so told."""

    def __init__(self) -> None:
        self.fails, self.calls_before = "", 0
        self.backend = CopiedBackend(kernels.BACKEND)
        for name, arguments in ARGUMENTS.items():
            self.backend.wrap(name, arguments, partial(self.call, name))
        self.device = self.backend.device()

    def call(self, name: str, real: Callable[..., int], *arguments: Any) -> int:
        """Call a function, or say that there is no memory."""
        if self.fails == name:
            self.calls_before -= 1
            if self.calls_before < 0:
                return NO_MEMORY
        return real(*arguments)

    def fail(self, name: str, calls_before: int = 0) -> None:
        """Let a function find no memory after some calls that do."""
        self.fails, self.calls_before = name, calls_before


@pytest.fixture
def flaky(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[mpe.EmbeddingBagCollection, FailingBackend]:
    backend = FailingBackend()
    monkeypatch.setitem(devices._known, "cpu", backend.device)
    emb = two_groups(True)
    emb.drop_prefetched()
    return emb, backend


GRAD = np.ones((2, 7), np.float32)


WRITES: dict[str, Callable[[mpe.EmbeddingBagCollection], Any]] = {
    "update": lambda e: e.backward(GRAD),
    "cache_flush": lambda e: e.flush(),
    "write_rows": lambda e: e.set_rows("b", np.array([1, 4]), np.ones((2, 3), np.float32)),
}
Flaky = tuple[mpe.EmbeddingBagCollection, FailingBackend]


@pytest.mark.parametrize("kernel", WRITES)
def test_nothing_has_changed_if_the_first_kernel_fails(kernel: str, flaky: Flaky) -> None:
    emb, backend = flaky
    before = digest(emb)
    backend.fail(kernel)
    with pytest.raises(MemoryError):
        WRITES[kernel](emb)
    assert digest(emb) == before
    backend.fail("")
    emb.backward(GRAD)


def test_no_row_is_updated_twice_if_a_later_kernel_fails(flaky: Flaky) -> None:
    emb, backend = flaky
    step = emb.step
    backend.fail("update", 1)
    with pytest.raises(MemoryError):
        emb.backward(GRAD)
    assert emb.step == step + 1
    assert collection_state(emb).engine.num_open == 0
    with pytest.raises(RuntimeError, match="used already"):
        emb.backward(GRAD)


@pytest.mark.parametrize(
    ("kernel", "calls"), [("cache_admit", 0), ("cache_admit", 1), ("lookup", 0)]
)
@pytest.mark.parametrize("prefetched", [False, True])
def test_a_forward_whose_kernel_fails_leaves_no_pins(
    kernel: str, calls: int, prefetched: bool, flaky: Flaky
) -> None:
    emb, backend = flaky
    known = prefetched and kernel == "lookup"
    if known:
        emb.prefetch(INDICES, OFFSETS)
    step = emb.step
    backend.fail(kernel, calls)
    with pytest.raises(MemoryError):
        emb.forward(INDICES, OFFSETS)
    admitted = calls if kernel == "cache_admit" else not known  # whether the call has changed rows
    assert emb.step == step + admitted
    assert collection_state(emb).engine.num_open == 0
    assert collection_state(emb).engine.num_prefetched == 0
    for dim in (3, 4):
        tags = emb.state_arrays()[f"cache.{dim}.adagrad.tags"]
        assert not (tags & np.uint64(0x7F << 56)).any()
    backend.fail("")
    emb.forward(INDICES, OFFSETS)
    emb.backward(GRAD)
