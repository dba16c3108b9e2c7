"""Calls on several streams keep their order, and the thread's device is set back.

A backend of Python functions notes what it is asked for, see fake_backend.py.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import pytest
from fake_backend import FUNCTIONS, I32, VOID, Fake

import mpembed as mpe
from mpembed import devices
from mpembed._bindings import tensor as tensors
from mpembed._bindings.device import DEVICE, PINNED_HOST, CallOrder, Device
from mpembed._bindings.dlpack import view
from mpembed._bindings.kernels import UpdateRules


def test_a_stream_waits_for_the_call_before_it(fake: Fake, device: Device) -> None:
    calls = CallOrder(device)
    with calls.on_stream(10) as on:
        assert on.address == 10
        assert fake.device == 1
    # The first call comes after what filled the arrays, on the default stream.
    event = 101
    assert fake.take() == [("record", event, 0), ("wait", event, 10), ("destroy_event", event),
                           ("record", 102, 10)]  # fmt: skip
    with calls.on_stream(10):
        pass
    assert fake.take() == [("record", 102, 10)]
    with calls.on_stream(20), calls.on_last_stream() as on:  # a call inside of a call is part of it
        assert on.address == 20
    assert fake.take() == [("wait", 102, 20), ("record", 102, 20)]
    with calls.on_last_stream() as on:
        assert on.address == 20
    assert fake.take() == [("record", 102, 20)]
    with calls.on_stream(None):
        pass
    assert fake.take() == [("wait", 102, 0), ("record", 102, 0)]
    with calls.on_stream(1):  # another name of the default stream
        pass
    assert fake.take() == [("record", 102, 0)]
    del calls
    assert fake.take() == [("destroy_event", 102)]


def test_the_device_is_set_back_after_an_error(fake: Fake, device: Device) -> None:
    calls = CallOrder(device)

    def fail() -> None:
        with calls.on_stream(10):
            assert fake.device == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert fake.device == 3
    assert ("record", 102, 10) in fake.take()


def test_a_call_that_cannot_begin_leaves_nothing_behind(fake: Fake, device: Device) -> None:
    calls = CallOrder(device)
    with calls.on_stream(10):
        pass
    fake.take()
    working = fake.table.current_device
    broken = ctypes.CFUNCTYPE(I32, *FUNCTIONS["current_device"])(lambda out: 6)
    fake.table.current_device = ctypes.cast(broken, VOID)
    with pytest.raises(RuntimeError, match="asking for the device"), calls.on_stream(20):
        pass
    fake.table.current_device = working
    with calls.on_stream(20) as on:  # a call of its own, not one inside of the failed one
        assert (on.address, fake.device) == (20, 1)
    assert fake.take() == [("wait", 102, 20), ("record", 102, 20)]


def test_a_tensor_goes_back_after_its_readers(fake: Fake, device: Device) -> None:
    tensor = tensors.transient(device.stream(10), (4,), np.float32)
    address = tensor.address
    tensor.__dlpack__(stream=20, max_version=(1, 1))
    assert fake.take() == [("record", 101, 10), ("wait", 101, 20), ("destroy_event", 101)]
    tensor.__dlpack__(stream=-1, max_version=(1, 1))
    tensor.__dlpack__(stream=10, max_version=(1, 1))
    assert fake.take() == []
    tensor.__dlpack__(stream=20, max_version=(1, 1))
    fake.take()
    del tensor
    assert fake.take() == [("record", 103, 20), ("wait", 103, 10), ("destroy_event", 103),
                           ("give_back", address, 10)]  # fmt: skip


@pytest.mark.parametrize("calls_first", [False, True])
def test_memory_of_the_host_outlasts_the_calls_that_use_it(
    fake: Fake, device: Device, calls_first: bool
) -> None:
    tensor = tensors.empty(device, (4,), np.float32, PINNED_HOST)
    address, calls = tensor.address, CallOrder(device)
    tensor.memory.used_by(calls)
    with calls.on_stream(10):
        pass
    fake.captured[20] = 7
    with calls.on_stream(20):  # a launch of the graph records another event
        pass
    fake.captured.clear()
    fake.take()
    freed = [("wait_on_host", 102), ("wait_on_host", 103), ("release", address, PINNED_HOST)]
    if calls_first:
        del calls
        assert fake.take() == []  # the events are needed still
        del tensor
        assert fake.take() == [*freed, ("destroy_event", 102), ("destroy_event", 103)]
    else:
        del tensor
        assert fake.take() == freed
        assert fake.device == 3


def test_memory_of_the_host_that_no_call_has_used(fake: Fake, device: Device) -> None:
    calls = CallOrder(device)
    for owner in (None, calls):
        tensor = tensors.empty(device, (4,), np.float32, PINNED_HOST)
        address = tensor.address
        if owner is not None:
            tensor.memory.used_by(owner)
        del tensor  # the default stream has filled it
        assert fake.take() == [("synchronize", 0), ("release", address, PINNED_HOST)]
    tensor = tensors.empty(device, (4,), np.float32, PINNED_HOST)
    fake.captured[0] = 7
    address = tensor.address
    del tensor
    assert fake.take() == [("release", address, PINNED_HOST)]  # and the capture goes on


def test_a_devices_memory_is_freed_at_once(fake: Fake, device: Device) -> None:
    tensor = tensors.empty(device, (4,), np.float32, DEVICE)
    address = tensor.address
    tensor.memory.used_by(CallOrder(device))
    del tensor
    assert fake.take() == [("release", address, DEVICE)]  # which waits by itself


def test_a_copy_is_made_before_its_consumer_waits(fake: Fake, device: Device) -> None:
    tensor = tensors.transient(device.stream(10), (4,), np.float32)
    address = tensor.address
    capsule = tensor.__dlpack__(stream=20, max_version=(1, 1), copy=True)
    copy = address + 4096
    assert fake.take() == [("copy", copy, address, 16, 10), ("record", 101, 10),
                           ("wait", 101, 20), ("destroy_event", 101)]  # fmt: skip
    del capsule  # the copy was read on 20, the tensor was not
    assert fake.take() == [("record", 102, 20), ("wait", 102, 10), ("destroy_event", 102),
                           ("give_back", copy, 10)]  # fmt: skip
    del tensor
    assert fake.take() == [("give_back", address, 10)]


def test_a_copy_of_pinned_memory_waits_for_its_writer(fake: Fake, device: Device) -> None:
    tensor = tensors.empty(device, (4,), np.float32, PINNED_HOST)
    view(tensor, "x", device.stream(10))
    ctypes.memset(tensor.address, 1, 16)
    fake.take()
    copy = np.from_dlpack(Copying(tensor))
    assert fake.take()[0] == ("synchronize", 10)
    assert copy.ctypes.data != tensor.address
    assert copy.tobytes() == b"\1" * 16


class Copying:
    """An exporter that hands on copies."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options | {"copy": True})


def test_tensors_in_one_memory_know_its_last_writer(fake: Fake, device: Device) -> None:
    tensor = tensors.transient(device.stream(10), (4, 2), np.float32)
    parts = [tensors.piece(tensor, 0, 2), tensors.row(tensor, 1)]
    view(tensor, "x", device.stream(20))
    fake.take()
    event = fake.events
    for part in parts:  # what stream 20 may have written, stream 10 waits for
        event += 1
        view(part, "x", device.stream(10))
        assert fake.take() == [("record", event, 20), ("wait", event, 10), ("destroy_event", event)]
        event += 1
        view(tensor, "x", device.stream(20))
        assert fake.take() == [("record", event, 10), ("wait", event, 20), ("destroy_event", event)]
    assert tensors.read_only(tensor, device.stream(30)).__cuda_array_interface__["stream"] == 30
    assert parts[0].__cuda_array_interface__["stream"] == 30


def test_a_copy_to_another_device_waits_for_its_source(
    fake: Fake, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Fake()
    other.said = fake.said  # one list, in order
    monkeypatch.setitem(devices._known, "cuda:1", device)
    monkeypatch.setitem(devices._known, "cuda:2", Device(other.capsule, 2))
    tensor = tensors.transient(device.stream(10), (4,), np.float32)
    fake.said.clear()
    copy = mpe.to_device(tensor, "cuda:2")
    names = [one for one in fake.said if one[0] != "use"]
    assert names == [("record", 101, 10), ("wait", 101, 0), ("destroy_event", 101),
                     ("synchronize", 0), ("copy", copy.address, tensor.address, 16, 0),
                     ("synchronize", 0)]  # fmt: skip


class Owner:
    """An object that owns a stream."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 40


def test_a_stream_lives_as_long_as_it_is_needed(device: Device) -> None:
    owners = [Owner() for _ in range(3)]
    alive = [weakref.ref(owner) for owner in owners]
    calls = CallOrder(device)
    with calls.on_stream(40), calls.on_stream(owners[0]):
        pass
    with calls.on_stream(owners[0]):  # its handle is that of the call before, which kept nothing
        pass
    tensor = tensors.transient(device.stream(owners[1]), (4,), np.float32)
    used = tensors.transient(device.stream(10), (4,), np.float32)
    view(used, "x", device.stream(owners[2]))
    del owners
    assert all(one() is not None for one in alive)
    del calls, tensor, used
    assert all(one() is None for one in alive)


def test_what_the_runtime_says_is_told(fake: Fake, device: Device) -> None:
    table = Fake()
    for status, error in ((4, MemoryError), (6, RuntimeError)):
        function = ctypes.CFUNCTYPE(I32, *FUNCTIONS["borrow"])(lambda *_, s=status: s)
        table.table.borrow = ctypes.cast(function, VOID)
        broken = Device(table.capsule, 1)
        with pytest.raises(error, match="on fake:1: it failed"):
            tensors.transient(broken.stream(None), (4,), np.float32)
        assert table.device == 3


def test_another_version_of_the_door_is_refused() -> None:
    old = Fake()
    own = old.table.api_version
    old.table.api_version = own + 1
    message = rf"speaks version {own + 1} of mpembed/api\.h, this mpembed {own}:"
    with pytest.raises(RuntimeError, match=message):
        Device(old.capsule, 0)


def test_a_rate_that_is_set_during_the_copy_is_sent_again(fake: Fake, device: Device) -> None:
    """The copy lets other threads run."""
    on = device.stream(None)
    rules = UpdateRules(on, 1, 0, permanent=True)

    changed = [rules]  # ctypes keeps functions, which may not keep what the fake device frees

    def copy(*_: Any) -> int:
        changed[0].set_table(0, 0, 0, (0.5, 0.0))
        return 0

    function = ctypes.CFUNCTYPE(I32, *FUNCTIONS["copy"])(copy)
    old, fake.table.copy = fake.table.copy, ctypes.cast(function, VOID)
    rules.send(on)
    changed.clear()
    assert rules.changed
    fake.table.copy = old
    rules.send(on)
    assert not rules.changed
