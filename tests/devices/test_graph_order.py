"""Launches of a graph and calls outside of it wait for each other: what the runtime is asked for.

A backend of Python functions notes it, see fake_backend.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_backend import Fake

from mpembed._bindings import tensor as tensors
from mpembed._bindings.device import CallOrder, Device
from mpembed._bindings.dlpack import view

CALLS, LAUNCHES = 101, 102  # the events of a collection


@pytest.fixture
def calls(fake: Fake, device: Device) -> CallOrder:
    made = CallOrder(device)
    with made.on_last_stream():
        pass
    assert fake.take() == [("record", CALLS, 0)]
    return made


def call(calls: CallOrder, stream: int) -> None:
    with calls.on_stream(stream) as on:
        assert on.address == stream


def test_calls_outside_and_launches_wait_for_each_other(fake: Fake, calls: CallOrder) -> None:
    fake.captured[10] = 5
    call(calls, 10)
    # A launch waits for the calls outside, and these wait for it.
    assert fake.take() == [("wait_in_graph", CALLS, 10), ("record_in_graph", LAUNCHES, 10)]
    call(calls, 10)
    with calls.on_last_stream() as on:  # on the stream of the capture, while that goes on
        assert (on.address, on.capture) == (10, 5)
    assert fake.take() == 2 * [("record_in_graph", LAUNCHES, 10)]
    fake.captured.clear()
    with calls.on_last_stream() as on:  # and then on that of the last call outside
        assert (on.address, on.capture) == (0, 0)
    assert fake.take() == [("wait", LAUNCHES, 0), ("record", CALLS, 0)]
    call(calls, 10)
    assert fake.take() == [("wait", CALLS, 10), ("wait", LAUNCHES, 10), ("record", CALLS, 10)]
    call(calls, 10)
    assert fake.take() == [("wait", LAUNCHES, 10), ("record", CALLS, 10)]
    fake.captured[10] = 6  # a graph more of the same collection
    call(calls, 10)
    assert fake.take() == [("wait_in_graph", CALLS, 10), ("record_in_graph", LAUNCHES, 10)]


def test_streams_of_one_capture_keep_their_order(fake: Fake, calls: CallOrder) -> None:
    fake.captured.update({10: 5, 20: 5})
    call(calls, 10)
    fake.take()
    call(calls, 20)
    assert fake.take() == [("record", 103, 10), ("wait", 103, 20), ("destroy_event", 103),
                           ("record_in_graph", LAUNCHES, 20)]  # fmt: skip


def test_a_refused_call_asks_for_nothing(fake: Fake, calls: CallOrder) -> None:
    fake.captured[10] = 5

    def refuse(on: Any) -> None:
        raise KeyError(on.capture)

    with pytest.raises(KeyError, match="5"), calls.on_stream(10, refuse):
        pass
    assert fake.take() == []
    with calls.on_stream(20, refuse):  # which is not captured
        pass
    fake.take()
    call(calls, 10)
    fake.take()
    with pytest.raises(RuntimeError, match=r"stream 0x14 is not part of it: pass stream=0xa"):
        call(calls, 20)
    fake.captured[10] = 2**64 - 1
    with pytest.raises(RuntimeError, match="capture of the stream has failed already"):
        call(calls, 10)
    assert fake.take() == []


def test_both_events_go(fake: Fake, device: Device) -> None:
    calls = CallOrder(device)
    call(calls, 0)
    fake.captured[10] = 5
    call(calls, 10)
    fake.take()
    del calls
    assert fake.take() == [("destroy_event", CALLS), ("destroy_event", LAUNCHES)]


def test_memory_of_a_capture_is_its_graphs(fake: Fake, device: Device) -> None:
    fake.captured[10] = 5
    inside, kept = (tensors.transient(device.stream(10), (4,), np.float32) for _ in range(2))
    address = inside.address
    del inside
    assert fake.take() == [("give_back", address, 10)]
    fake.captured.clear()
    del kept
    assert fake.take() == []


def test_other_memory_waits_for_the_end_of_a_capture(fake: Fake, device: Device) -> None:
    first, second = (tensors.transient(device.stream(10), (4,), np.float32) for _ in range(2))
    addresses = first.address, second.address
    view(second, "x", device.stream(20))
    second.__dlpack__(stream=10, max_version=(1, 1))
    fake.take()
    fake.captured[10] = 5
    del first, second
    tensors.transient(device.stream(20), (4,), np.float32)
    assert [name for name, *_ in fake.take()] == ["give_back"]  # of the last one
    fake.captured.clear()
    tensors.transient(device.stream(20), (4,), np.float32)
    given_back = [one[1] for one in fake.take() if one[0] == "give_back"]
    assert sorted(given_back[:2]) == sorted(addresses)


def test_arrays_are_not_ordered_before_a_launch(fake: Fake, device: Device) -> None:
    """A graph runs when it is launched, after what the stream of the launch has been given."""
    tensor = tensors.transient(device.stream(10), (4,), np.float32)
    fake.captured[20] = 5
    view(tensor, "x", device.stream(20))
    assert fake.take() == []
    with pytest.raises(RuntimeError, match="cannot be used outside of it before its launch"):
        view(tensor, "x", device.stream(10))
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        tensor.numpy()
    fake.captured.clear()
    view(tensor, "x", device.stream(10))
    assert [name for name, *_ in fake.take()] == ["record", "wait", "destroy_event"]
