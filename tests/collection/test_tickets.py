"""Tickets: several open batches, pins, prefetch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import on_device
import pytest
from helpers import batch, collection, digest, pinned, train

import mpembed as mpe
from mpembed.tickets import batch_of

GRAD = np.ones((3, 12), np.float32)
on_every_device = pytest.mark.usefixtures("each_device")


def other_rows(first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch of eight rows of table a from `first` on."""
    indices = np.arange(first, first + 8)
    return indices, np.array([0, 8, 8, 8, 8, 8, 8])


@on_every_device
def test_backward_unpins() -> None:
    emb = collection()
    emb.forward(*batch())
    assert pinned(emb) > 0
    emb.backward(GRAD)
    assert pinned(emb) == 0


@on_every_device
def test_a_new_forward_drops_the_implicit_ticket() -> None:
    emb = collection(cache=mpe.CacheConfig(num_sets=4, ways=8))
    emb.forward(*batch())
    emb.forward(*other_rows(20))
    assert pinned(emb) == 8
    emb.backward(GRAD)
    assert pinned(emb) == 0


@on_every_device
def test_open_tickets_are_used_in_any_order() -> None:
    emb = collection(cache=mpe.CacheConfig(num_sets=4, ways=8))
    _, first = emb.forward(*batch(), ticket=True)
    _, second = emb.forward(*other_rows(20), ticket=True)
    emb.backward(GRAD, first)
    assert not first.open
    assert second.open
    assert pinned(emb) == 8
    emb.backward(GRAD, second)
    assert pinned(emb) == 0
    with pytest.raises(RuntimeError, match="used already"):
        emb.backward(GRAD, first)


@on_every_device
def test_dropping_twice_is_harmless_and_a_lost_ticket_unpins() -> None:
    emb = collection()
    _, ticket = emb.forward(*batch(), ticket=True)
    ticket.drop()
    ticket.drop()
    assert pinned(emb) == 0
    _, lost = emb.forward(*batch(), ticket=True)
    _, last = emb.forward(*batch(), ticket=True)
    del lost
    gc.collect()
    last.drop()
    assert pinned(emb) == 0


@on_every_device
def test_foreign_and_wrong_tickets_are_refused() -> None:
    emb, other = collection(), collection()
    _, ticket = other.forward(*batch(), ticket=True)
    with pytest.raises(ValueError, match="another collection"):
        emb.backward(GRAD, ticket)
    with pytest.raises(TypeError, match="Ticket"):
        emb.backward(GRAD, 3)
    waiting = emb.prefetch(*batch())
    with pytest.raises(RuntimeError, match="call forward first"):
        emb.backward(GRAD, waiting)


@on_every_device
def test_too_many_open_batches() -> None:
    emb = collection()
    tickets = [emb.forward(*batch(), ticket=True)[1] for _ in range(127)]
    before = digest(emb)
    for call in (emb.forward, emb.prefetch):
        with pytest.raises(RuntimeError, match="127 batches are open"):
            call(*batch())
    assert digest(emb) == before
    for ticket in tickets:
        ticket.drop()
    assert pinned(emb) == 0
    emb.forward(*batch())


def test_without_a_cache_any_number_is_open() -> None:
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("a", 50, 4)], optimizer=mpe.SGD(1.0))
    start = emb.rows("a", np.array([7]))
    indices, offsets = np.array([7]), np.array([0, 1])
    tickets = [emb.forward(indices, offsets, ticket=True)[1] for _ in range(300)]
    for ticket in tickets:
        emb.backward(np.ones((1, 4), np.float32), ticket)
    np.testing.assert_allclose(emb.rows("a", np.array([7])), start - 300, rtol=1e-5)
    for _ in range(127):
        emb.prefetch(indices, offsets)
    with pytest.raises(RuntimeError, match="127 of them prefetched"):
        emb.prefetch(indices, offsets)


@on_every_device
def test_forgotten_prefetches_can_be_dropped() -> None:
    emb = collection()
    emb.prefetch(*other_rows(20))
    for _ in range(126):
        emb.prefetch(*batch())
    gc.collect()
    with pytest.raises(RuntimeError, match=r"127 of them prefetched.*drop_prefetched\(\)"):
        emb.forward(*other_rows(10))
    assert emb.drop_prefetched() == 127
    assert emb.drop_prefetched() == 0
    assert pinned(emb) == 0
    _, ticket = emb.forward(*batch(), ticket=True)
    emb.prefetch(*batch())
    assert emb.drop_prefetched() == 1  # and no forward's ticket
    emb.backward(GRAD, ticket)


@pytest.mark.parametrize(
    "name", ["open", "batch_size", "num_indices", "weighted", "nbytes", "lookups", "drop"]
)
def test_what_a_ticket_says_cannot_be_changed(name: str) -> None:
    emb = collection()
    _, ticket = emb.forward(*batch(), ticket=True)
    with pytest.raises(AttributeError):
        setattr(ticket, name, 1)
    assert [ticket.open, ticket.batch_size, ticket.num_indices, ticket.weighted] == [
        True,
        3,
        8,
        False,
    ]
    public = {attribute for attribute in dir(ticket) if not attribute.startswith("_")}
    assert public == {"open", "batch_size", "num_indices", "weighted", "nbytes", "drop"}


def test_python_reaches_no_array_that_kernels_trust() -> None:
    emb = collection()
    _, ticket = emb.forward(*batch(), ticket=True)
    opened = batch_of(ticket).opened
    for name in ("slots", "keys", "bags", "positions", "starts", "weights", "handle"):
        assert not hasattr(opened, name)
        with pytest.raises(AttributeError):
            setattr(opened, name, np.zeros(1))


def test_state_arrays_are_read_only() -> None:
    emb = collection()
    train(emb)
    before = digest(emb)
    for name, array in emb.state_arrays().items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
        assert array.dtype == emb.state_arrays()[name].dtype
    assert digest(emb) == before
    tags = emb.state_arrays()["cache.6.rowwise_adagrad.tags"]
    emb.forward(*other_rows(20))
    assert (
        tags.tobytes() == emb.state_arrays()["cache.6.rowwise_adagrad.tags"].tobytes()
    )  # views, no copies


@on_every_device
def test_prefetched_rows_are_not_evicted() -> None:
    emb = collection(cache=mpe.CacheConfig(num_sets=1, ways=8, policy="lru"))
    ticket = emb.prefetch(*other_rows(0))
    tags = emb.state_arrays()["cache.6.rowwise_adagrad.tags"].copy()
    for first in (8, 16, 24):
        emb.forward(*other_rows(first))
        emb.backward(GRAD)
    np.testing.assert_array_equal(emb.state_arrays()["cache.6.rowwise_adagrad.tags"], tags)
    assert emb.stats()["a"]["conflict_misses"] == 24
    ticket.drop()
    emb.forward(*other_rows(8))
    assert (emb.state_arrays()["cache.6.rowwise_adagrad.tags"] != tags).all()


@on_every_device
def test_prefetch_is_taken_over_once() -> None:
    emb = collection(cache=mpe.CacheConfig(num_sets=4, ways=8, policy="lru"))
    ticket = emb.prefetch(*batch())
    counted = emb.stats()
    emb.forward(*batch())
    assert emb.stats() == counted
    emb.backward(GRAD)
    assert not ticket.open
    assert pinned(emb) == 0
    emb.forward(*batch())
    assert emb.stats()["a"]["hits"] > counted["a"]["hits"]


@on_every_device
def test_evaluation_changes_nothing() -> None:
    emb = collection()
    emb.forward(*batch())
    before = digest(emb)
    emb.forward(*batch(), training=False)
    emb.forward(*other_rows(20), training=False)
    assert digest(emb) == before
    emb.backward(GRAD)


@on_every_device
def test_the_last_write_step_is_the_end() -> None:
    emb = collection()
    train(emb)
    emb.forward(*batch())
    on_device.set_step(emb, 2**40 - 1)
    before, zero = digest(emb), np.zeros((1, 6), np.float32)
    calls: list[Callable[[], Any]] = [
        lambda: emb.forward(*batch()),
        lambda: emb.prefetch(*batch()),
        lambda: emb.backward(GRAD),
        lambda: emb.set_rows("a", np.array([1]), zero),
        emb.flush,
    ]
    for call in calls:
        with pytest.raises(OverflowError, match="write step"):
            call()
        assert digest(emb) == before
    emb.forward(*batch(), training=False)


@on_every_device
def test_the_caller_may_reuse_its_arrays_before_backward() -> None:
    emb, plain = collection(), collection()
    indices, offsets = batch()
    weights = np.linspace(0, 1, 8, dtype=np.float32)
    plain.forward(*batch(), weights.copy())
    emb.forward(indices, offsets, weights)
    indices[:], offsets[:], weights[:] = 0, 0, np.nan
    np.testing.assert_array_equal(emb.backward(GRAD), plain.backward(GRAD))
    assert digest(emb) == digest(plain)


@pytest.mark.gpu
def test_a_refused_prefetch_leaves_the_shapes_of_unpooled_outputs(cuda: str) -> None:
    """A device empties the batch; what the forward counts is the caller's."""
    tables = [mpe.TableConfig("a", 20, 4, "int8", "none"), mpe.TableConfig("b", 20, 4, "int8")]
    emb = mpe.EmbeddingBagCollection(
        tables, cache=mpe.CacheConfig(num_sets=1), optimizer=mpe.SGD(0.1), device=cuda
    )
    indices, offsets = np.array([1, 2, 99, 3]), np.array([0, 2, 3, 3, 4])
    sent = [mpe.to_device(one, cuda) for one in (indices, offsets)]
    emb.prefetch(*sent)
    out = emb.forward(*sent)
    assert {name: one.shape for name, one in out.items()} == {"a": (3, 4), "b": (2, 4)}
    with pytest.raises(IndexError, match="99"):
        emb.check()
