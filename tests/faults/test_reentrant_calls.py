"""Calls from inside a call of the same thread: from arguments, finalizers and signal handlers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters import Exporter
from helpers import batch, collection, digest, pinned

import mpembed as mpe
from mpembed.collection import collection_state
from mpembed.tickets import batch_of

GRAD = np.ones((3, 12), np.float32)
Emb = mpe.EmbeddingBagCollection
on_every_device = pytest.mark.usefixtures("each_device")


CHANGES: dict[str, Callable[[Emb, mpe.Ticket], Any]] = {
    "prefetch": lambda e, _: e.prefetch(*batch()),
    "forward": lambda e, _: e.forward(*batch()),
    "backward": lambda e, _: e.backward(GRAD),
    "backward of the ticket": lambda e, t: e.backward(GRAD, t),
    "drop": lambda e, t: t.drop(),
    "drop_prefetched": lambda e, _: e.drop_prefetched(),
    "flush": lambda e, _: e.flush(),
    "set_rows": lambda e, _: e.set_rows("a", np.array([1]), np.zeros((1, 6), np.float32)),
}
CHANGES |= {
    "set_state": lambda e, _: set_sums(e, np.ones(1, np.float32)),
    "set_updates": lambda e, _: e.set_updates(3),
    "apply_delta": lambda e, _: e.apply_delta(DELTA[0]),
    "restore": lambda e, _: restore(e),
}
OUTER: dict[str, Callable[[Emb, mpe.Ticket, Callable[[], Any]], Any]] = {
    "backward": lambda e, t, call: e.backward(Exporter(GRAD, call), t),
    "forward": lambda e, _, call: e.forward(Exporter(batch()[0], call), batch()[1]),
    "prefetch": lambda e, _, call: e.prefetch(Exporter(batch()[0], call), batch()[1]),
    "set_rows": lambda e, _, call: e.set_rows(
        "a", np.array([1]), Exporter(np.zeros((1, 6), np.float32), call)
    ),
    "set_state": lambda e, _, call: set_sums(e, Exporter(np.ones(1, np.float32), call)),
}
DELTA: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A delta, of a collection at step 0."""
    emb, folder = collection(), tmp_path_factory.mktemp("delta")
    emb.save(folder / "base", track=True)
    emb.save(folder / "delta", since=0)
    DELTA.append(folder / "delta")
    yield
    DELTA.clear()


def set_sums(emb: Emb, values: Any) -> None:
    emb.set_state("a", np.array([1]), {"sum": values})


def restore(emb: Emb) -> None:
    other = collection_state(collection())
    with other.reading() as on:
        arrays = {name: one.whole(on) for name, one in other.arrays().items()}
        counters = other.counters(on)
    collection_state(emb).restore(arrays, counters, 0)


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", CHANGES)
def test_a_change_inside_a_change_is_refused(outer: str, inner: str) -> None:
    emb, alone = collection(), collection()
    tickets = [one.forward(*batch(), ticket=True)[1] for one in (emb, alone)]
    for one in (emb, alone):
        one.forward(*batch())
    refused = []

    def call() -> None:
        with pytest.raises(RuntimeError, match="call of the collection is still running") as found:
            CHANGES[inner](emb, tickets[0])
        refused.append(found)

    OUTER[outer](emb, tickets[0], call)
    OUTER[outer](alone, tickets[1], lambda: None)
    assert refused
    assert digest(emb) == digest(alone)
    assert tickets[0].open == tickets[1].open


@pytest.mark.parametrize("outer", OUTER)
def test_reading_inside_a_change_is_allowed(outer: str, tmp_path: Path) -> None:
    """What a signal handler does that saves before the process ends."""
    emb, alone = collection(), collection()
    tickets = [one.forward(*batch(), ticket=True)[1] for one in (emb, alone)]

    emb.save(tmp_path / "before")
    stats = emb.stats()

    def read() -> None:
        outs = [one.forward(*batch(), training=False) for one in (emb, alone)]
        np.testing.assert_array_equal(*outs)
        rows = [one.rows("a", np.array([1])) for one in (emb, alone)]
        np.testing.assert_array_equal(*rows)
        assert emb.stats() == stats
        emb.save(tmp_path / "saved")

    OUTER[outer](emb, tickets[0], read)
    OUTER[outer](alone, tickets[1], lambda: None)
    assert digest(emb) == digest(alone)
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "before").read_bytes()
    assert Emb.load(tmp_path / "saved").step == 1


@pytest.mark.parametrize("outer", OUTER)
def test_a_ticket_that_dies_inside_a_call_is_dropped_after_it(outer: str) -> None:
    emb = collection()
    kept, used = [emb.forward(*batch(), ticket=True)[1]], emb.forward(*batch(), ticket=True)[1]

    def lose() -> None:
        kept.clear()
        gc.collect()

    OUTER[outer](emb, used, lose)
    used.drop()
    emb.drop_prefetched()
    emb.forward(*batch())
    emb.backward(GRAD)
    assert collection_state(emb).engine.num_open == 0
    assert pinned(emb) == 0


class Slow:
    """An argument in which another thread waits, inside a call, until it is told to fail."""

    def __init__(self) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()

    def __dlpack_device__(self) -> tuple[int, int]:
        self.inside.set()
        self.leave.wait(30)
        raise BufferError("never")

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("finalizer", [True, False])
def test_a_finalizer_does_not_wait_for_another_thread(finalizer: bool) -> None:
    """That thread may wait for this one; and a finalizer that was interrupted has its heir."""
    emb = collection()
    lost: Any = emb.forward(*batch(), ticket=True)[1]
    last = emb.forward(*batch(), ticket=True)[1]
    slow, errors = Slow(), []

    def enter() -> None:
        try:
            emb.forward(slow, batch()[1])
        except BufferError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    assert slow.inside.wait(30)
    if not finalizer:  # the step's record of the batch dies without its ticket's finalizer
        opened = batch_of(lost).opened
        lost.__class__ = type("Interrupted", (mpe.Ticket,), {"__slots__": (), "__del__": pass_by})
        del opened
    del lost  # returns at once
    assert not errors
    slow.leave.set()
    thread.join()
    assert errors
    last.drop()
    assert collection_state(emb).engine.step.num_open == 0
    assert pinned(emb) == 0


def pass_by(_: mpe.Ticket) -> None:
    """Do nothing, as a finalizer that an interrupt has ended at its first line."""


@on_every_device
@pytest.mark.parametrize("held", [True, False])
def test_a_finalizer_that_was_interrupted_leaves_no_pins(held: bool) -> None:
    emb = collection()
    ticket = emb.forward(*batch(), ticket=True)[1]
    collection_state(emb).engine.detach(ticket)
    ticket.__class__ = type("Interrupted", (mpe.Ticket,), {"__slots__": (), "__del__": pass_by})
    if held:
        with collection_state(emb).writing():
            del ticket
            assert pinned(emb) > 0
        emb.check()
    else:
        del ticket
    assert pinned(emb) == 0
    assert collection_state(emb).engine.num_open == 0


@on_every_device
def test_a_collection_is_garbage_with_its_open_batches() -> None:
    """The collector clears what refers to each other in any order."""
    for _ in range(3):
        emb = collection()
        garbage: list[Any] = [emb, emb.prefetch(*batch()), emb.forward(*batch(), ticket=True)[1]]
        emb.forward(*batch())
        garbage += [garbage, batch_of(garbage[1]).opened, collection_state(emb).engine.step]
        del emb, garbage
        gc.collect()
