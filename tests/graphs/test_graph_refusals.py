"""What a CUDA graph cannot capture: refused by name, and both collection and capture go on."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import emulated
import graphs
import numpy as np
import pytest
from twins import BAGS, Twins, bytes_of, mixed

import mpembed as mpe
from mpembed.collection import collection_state
from mpembed.tickets import MAX_OPEN

pytestmark = pytest.mark.gpu


@pytest.fixture
def twins(runtime: graphs.Runtime) -> Twins:
    made = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    made.step()
    made.step_here()
    return made


def device(array: Any) -> Any:
    return mpe.to_device(np.asarray(array), "cuda")


IDS, VALUES = np.array([1]), np.ones((1, 5), np.float32)
REFUSED: dict[str, tuple[Callable[[Twins, Any], Any], str]] = {
    "no out": (
        lambda t, a: t.there.forward(t.indices, t.offsets, stream=t.stream),
        "forward needs out= to be captured in a CUDA graph",
    ),
    "no out of an evaluation": (
        lambda t, a: t.there.forward(t.indices, t.offsets, training=False, stream=t.stream),
        "forward needs out=",
    ),
    "dict": (
        lambda t, a: t.there.forward(
            {c.name: (t.indices, t.offsets) for c in t.there.tables}, out=t.out, stream=t.stream
        ),
        "a dict batch cannot be captured",
    ),
    "prefetch of a dict": (
        lambda t, a: t.there.prefetch({}, stream=t.stream),
        "a dict batch cannot be captured",
    ),
    "another stream": (
        lambda t, a: t.there.forward(t.indices, t.offsets),
        "is not part of it: pass stream=",
    ),
    "check": (lambda t, a: t.there.check(), "check waits for the device and cannot be captured"),
    "step": (lambda t, a: t.there.step, "step waits for the device"),
    "stats": (lambda t, a: t.there.stats(), "stats waits for the device"),
    "rounding_report": (lambda t, a: t.there.rounding_report(), "rounding_report waits for"),
    "rows": (lambda t, a: t.there.rows("int85", a[0], stream=t.stream), "rows waits"),
    "set_rows": (lambda t, a: t.there.set_rows("int85", *a, stream=t.stream), "set_rows waits"),
    "updates": (lambda t, a: t.there.updates, "updates waits for the device"),
    "set_updates": (lambda t, a: t.there.set_updates(3), "set_updates waits for the device"),
    "state": (lambda t, a: t.there.state("int85", a[0], stream=t.stream), "state waits"),
    "set_state": (
        lambda t, a: t.there.set_state("int85", a[0], {}, stream=t.stream),
        "set_state waits",
    ),
    "flush": (lambda t, a: t.there.flush(stream=t.stream), "flush waits for the device"),
    "save": (lambda t, a: t.there.save("/nowhere"), "save waits for the device"),
    "state_arrays": (lambda t, a: t.there.state_arrays(), "state_arrays waits for the device"),
    "lr": (lambda t, a: setattr(t.there.optimizer, "lr", 1), "the learning rate cannot be set in"),
    "numpy": (lambda t, a: t.out.numpy(), "cannot be captured in a CUDA graph"),
}


# Calls that know of a capture only once it has taken one with its stream.
WITHOUT_STREAM = {"another stream", "check", "step", "stats", "rounding_report", "save"}
WITHOUT_STREAM |= {"state_arrays", "lr", "numpy", "updates", "set_updates"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, twins: Twins) -> None:
    call, message = REFUSED[name]
    before = bytes_of(twins.there)
    arrays = device(IDS), device(VALUES)
    with twins.runtime.capture(twins.stream) as made:
        twins.forward(training=False)  # from here on the collection is captured
        with pytest.raises(RuntimeError, match=message):
            call(twins, arrays)
        twins.step()
    assert bytes_of(twins.there) == before
    made[0].launch(twins.stream, 2)
    for _ in range(2):
        twins.step_here()
    twins.assert_equal()


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in WITHOUT_STREAM])
def test_a_refusal_queues_nothing(name: str, twins: Twins) -> None:
    arrays = device(IDS), device(VALUES)
    twins.runtime.begin(twins.stream)
    with pytest.raises(RuntimeError):
        REFUSED[name][0](twins, arrays)
    assert twins.runtime.end(twins.stream).nodes == 0
    twins.assert_equal()


def test_several_tables_of_which_one_has_no_bags(runtime: Any) -> None:
    tables = [mpe.TableConfig("a", 9, 4, pooling="none"), mpe.TableConfig("b", 9, 4)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), device="cuda")
    indices, offsets = device([1, 2, 3]), device([0, 1, 3])
    out = {name: device(np.zeros((n, 4), np.float32)) for name, n in (("a", 1), ("b", 1))}
    stream = runtime.stream()
    runtime.begin(stream)
    for training in (True, False):
        with pytest.raises(RuntimeError, match="pooling='none' among them cannot be captured"):
            emb.forward(indices, offsets, out=out, stream=stream, training=training)
    assert runtime.end(stream).nodes == 0
    emb.check()


def test_a_backward_without_its_forward(twins: Twins) -> None:
    _, ticket = twins.forward(ticket=True)
    twins.forward()
    twins.runtime.begin(twins.stream)
    for one in (None, ticket):
        with pytest.raises(RuntimeError, match="without its forward, which was called outside"):
            twins.there.backward(twins.grad, one, stream=twins.stream)
    with pytest.raises(RuntimeError, match="call backward before the capture"):
        twins.forward()
    with pytest.raises(RuntimeError, match="call backward before the capture"):
        twins.there.prefetch(twins.indices, twins.offsets, stream=twins.stream)
    assert twins.runtime.end(twins.stream).nodes == 0
    for one in (None, ticket):
        twins.there.backward(twins.grad, one, stream=twins.stream)
    here = twins.here.forward(*twins.batch[:2], ticket=True)[1]
    twins.here.forward(*twins.batch[:2])
    for one in (None, here):
        twins.here.backward(twins.batch[3], one)
    twins.assert_equal()


def test_a_prefetch_from_outside(twins: Twins) -> None:
    twins.there.prefetch(twins.indices, twins.offsets)
    twins.here.prefetch(*twins.batch[:2])
    twins.runtime.begin(twins.stream)
    with pytest.raises(RuntimeError, match="from outside the capture cannot be taken over"):
        twins.forward()
    assert twins.runtime.end(twins.stream).nodes == 0
    twins.step()
    twins.step_here()
    twins.assert_equal()


def test_the_gradient_of_weights_needs_memory(twins: Twins) -> None:
    with twins.runtime.capture(twins.stream) as made:
        twins.forward(weighted=True)
        with pytest.raises(RuntimeError, match=r"per_sample_weights needs out= to be captured"):
            twins.there.backward(twins.grad, stream=twins.stream)
        twins.backward(weighted=True)
    made[0].launch(twins.stream)
    twins.step_here(weighted=True)
    twins.assert_equal()


def test_a_forward_that_is_left_open(twins: Twins) -> None:
    for explicit in (False, True):
        with twins.runtime.capture(twins.stream):
            kept = twins.forward(ticket=True) if explicit else twins.forward()
        assert twins.there.memory_report()["workspace"] > 0
        with pytest.warns(RuntimeWarning, match="do not launch that graph"):
            twins.there.check()
        assert twins.there.memory_report()["workspace"] == 0
        with pytest.raises(RuntimeError, match="used already or dropped"):
            twins.there.backward(twins.grad, kept[1] if explicit else None)
    twins.step()
    twins.step_here()
    twins.assert_equal()


def test_a_ticket_dies_after_its_capture(twins: Twins) -> None:
    with twins.runtime.capture(twins.stream):
        ticket = twins.forward(ticket=True)[1]
    with pytest.warns(RuntimeWarning, match="do not launch that graph"):
        ticket.drop()
    assert not ticket.open
    twins.step()
    twins.step_here()
    twins.assert_equal()


def test_a_ticket_from_outside_dies_in_a_capture(twins: Twins) -> None:
    """Its rows are unpinned and its memory goes back once that is possible."""
    kept, lost = twins.forward(ticket=True)[1], twins.forward(ticket=True)[1]
    here = [twins.here.forward(*twins.batch[:2], ticket=True)[1] for _ in range(2)]
    with twins.runtime.capture(twins.stream) as made:
        twins.forward(training=False)
        with pytest.raises(
            RuntimeError, match="outside the capture cannot be closed in a CUDA graph"
        ):
            kept.drop()
        assert kept.open
        del lost
        gc.collect()
        twins.step()
    kept.drop()
    for one in here:
        one.drop()
    made[0].launch(twins.stream)
    twins.step_here()
    twins.assert_equal()
    assert twins.there.memory_report()["workspace"] == 0


def test_a_ticket_dies_in_a_capture_that_has_failed(twins: Twins) -> None:
    kept = twins.forward(ticket=True)[1]
    twins.here.forward(*twins.batch[:2], ticket=True)[1].drop()
    twins.runtime.begin(twins.stream)
    twins.runtime.status("cudaStreamSynchronize", ctypes.c_void_p(twins.stream))
    del kept
    gc.collect()
    twins.runtime.give_up(twins.stream)
    twins.step()
    twins.step_here()
    twins.assert_equal()


@emulated.alone
def test_memory_that_dies_in_a_capture_goes_back_later(twins: Twins) -> None:
    gc.collect()
    before = emulated.live_bytes()
    result = twins.there.forward(twins.indices, twins.offsets, training=False, stream=twins.stream)
    with twins.runtime.capture(twins.stream) as made:
        del result
        twins.step()
    made[0].launch(twins.stream)
    twins.forward(training=False)  # borrows memory, and gives back what waited
    assert emulated.live_bytes() == before


def test_a_collection_dies_in_a_capture(twins: Twins) -> None:
    """Its memory is freed by cudaFree, which a capture does not survive: it waits."""
    other = Twins(twins.runtime, mixed())
    with twins.runtime.capture(twins.stream) as made:
        twins.forward()
        del other
        gc.collect()
        twins.backward()
    made[0].launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_the_runtime_ends_a_capture(twins: Twins) -> None:
    """A mistake of the caller: the collection is as it was, and can be captured again."""
    twins.runtime.begin(twins.stream)
    twins.step()
    twins.runtime.status("cudaStreamSynchronize", ctypes.c_void_p(twins.stream))
    with pytest.raises(RuntimeError, match="capture of the stream has failed already"):
        twins.forward()
    with pytest.raises(RuntimeError, match=f"error {graphs.INVALIDATED}"):
        twins.runtime.end(twins.stream)
    twins.assert_equal()
    twins.captured().launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_an_error_between_forward_and_backward(twins: Twins) -> None:
    twins.runtime.begin(twins.stream)
    twins.forward()
    twins.runtime.give_up(twins.stream)
    with pytest.warns(RuntimeWarning, match="ended before the backward"):
        twins.step()
    twins.step_here()
    twins.assert_equal()


def test_wrong_arguments_in_a_capture(twins: Twins) -> None:
    with twins.runtime.capture(twins.stream) as made:
        with pytest.raises(TypeError, match="dtype"):
            twins.there.forward(twins.weights, twins.offsets, out=twins.out, stream=twins.stream)
        twins.forward()
        with pytest.raises(ValueError, match="grad"):
            twins.there.backward(twins.weights, stream=twins.stream)
        with pytest.raises(ValueError, match="the forward had none"):
            twins.there.backward(twins.grad, stream=twins.stream, out=twins.weight_grad)
        twins.backward()
    made[0].launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_launches_have_room_for_their_pins(twins: Twins) -> None:
    """A slot counts 127 pins, of which launches take some for a time."""
    with twins.runtime.capture(twins.stream) as made:
        tickets = [twins.forward(ticket=True)[1] for _ in range(3)]
        for ticket in tickets:
            ticket.drop()
    kept = [twins.forward(ticket=True)[1] for _ in range(MAX_OPEN - 3)]
    with pytest.raises(RuntimeError, match="batches are open"):
        twins.forward(ticket=True)
    made[0].launch(twins.stream)
    with twins.runtime.capture(twins.stream):
        tickets = [twins.forward(ticket=True)[1] for _ in range(3)]
        with pytest.raises(RuntimeError, match="batches are open"):
            twins.forward(ticket=True)
        for ticket in tickets:
            ticket.drop()
    for ticket in kept:
        ticket.drop()
    assert not pins(twins)


def pins(twins: Twins) -> int:
    """Return how many slots of the caches are pinned."""
    arrays = collection_state(twins.there).arrays()
    tags = [one.memory.numpy() for name, one in arrays.items() if name.endswith(".tags")]
    assert len(tags) > 0
    return sum(int(np.count_nonzero(one >> np.uint64(56) & np.uint64(0x7F))) for one in tags)


def test_dropped_tickets_count_once(twins: Twins) -> None:
    """What is dropped in a capture is closed after it; until then it takes one place."""
    before = twins.there.memory_report()["workspace"]
    kept = [twins.forward(ticket=True)[1] for _ in range(60)]
    held = twins.there.memory_report()["workspace"]
    with twins.runtime.capture(twins.stream):
        twins.step()
        kept.clear()
        gc.collect()
        assert twins.there.memory_report()["workspace"] == held
        tickets = [twins.forward(ticket=True)[1] for _ in range(MAX_OPEN - 60)]
        with pytest.raises(RuntimeError, match="batches are open"):
            twins.forward(ticket=True)
        for ticket in tickets:
            ticket.drop()
    twins.there.drop_prefetched()
    assert twins.there.memory_report()["workspace"] == before


def test_a_close_that_fails_is_tried_again(twins: Twins, monkeypatch: Any) -> None:
    kept = [twins.forward(ticket=True)[1] for _ in range(3)]
    with twins.runtime.capture(twins.stream):
        twins.step()
        kept.clear()
        gc.collect()
    engine, left = collection_state(twins.there).engine, [1]
    close = type(engine)._close_all

    def fail_once(self: Any, batches: Any, on: Any) -> None:
        if left:
            left.pop()
            raise MemoryError("no memory")
        close(self, batches, on)

    monkeypatch.setattr(type(engine), "_close_all", fail_once)
    with pytest.raises(MemoryError):
        twins.there.drop_prefetched()
    assert engine.step.num_open == 2  # that one was closed as it died
    twins.there.drop_prefetched()
    assert twins.there.memory_report()["workspace"] == 0
    assert not pins(twins)


def test_the_default_stream_beside_a_blocking_one(twins: Twins) -> None:
    blocking = twins.runtime.stream(flags=0)
    twins.runtime.begin(blocking)
    with pytest.raises(RuntimeError, match="using the default stream while another stream is"):
        twins.there.forward(twins.indices, twins.offsets, out=twins.out)
    twins.forward(stream=blocking)
    twins.there.backward(twins.grad, stream=blocking)
    twins.runtime.end(blocking).launch(blocking)
    twins.step_here()
    twins.assert_equal()


def test_a_rate_shared_by_collections(runtime: Any) -> None:
    """The optimizer's rate reaches the graphs of all collections that use it."""
    optimizer = mpe.SGD(0.1)
    pairs = [Twins(runtime, mixed()[:2], optimizer=lambda lr: optimizer) for _ in range(2)]
    made = [twins.captured() for twins in pairs]
    optimizer.lr = 0.025
    for twins, graph in zip(pairs, made, strict=True):
        graph.launch(twins.stream)
        twins.step_here()
        twins.assert_equal()
    with pytest.raises(ValueError, match="lr"):
        optimizer.lr = -1
    assert optimizer.lr == 0.025
    assert BAGS
