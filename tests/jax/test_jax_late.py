"""A device's states reach the host late: when they are compared, and what is waited for.

The device is a backend of Python functions, see fake_backend.py, whose copies to the host land when
a test says so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_backend import Fake

pytest.importorskip("jax")

from xla_calls import Calls, HandlerError

from mpembed._bindings.device import CallOrder, Device
from mpembed._bindings.xla import Handle, StaleStateError

EVENT = 101
INDICES, OFFSETS = np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32)
RESULTS = [((3, 2), "float32"), ((4,), "float32")]


class LateFake(Fake):
    """A device whose copies to pinned memory wait for `land`."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = range(0)
        self.waiting: list[tuple[int, bytes]] = []

    def do_allocate(self, nbytes: int, placement: int, out: Any) -> int:
        super().do_allocate(nbytes, placement, out)
        self.pinned = range(out[0], out[0] + nbytes)
        return 0

    def do_copy(self, to: int, source: int, nbytes: int, stream: int | None) -> int:
        self.said.append(("copy", "out" if to in self.pinned else "in", stream or 0))
        if to in self.pinned:
            self.waiting.append((to, ctypes.string_at(source, nbytes)))
        else:
            ctypes.memmove(to, source, nbytes)
        return 0

    def do_wait_on_host(self, event: int) -> int:
        self.said.append(("wait_on_host", event))
        self.land()
        return 0

    def land(self) -> None:
        for to, values in self.waiting:
            ctypes.memmove(to, values, len(values))
        self.waiting.clear()


class HostRuntime:
    """What `Calls` takes for the CUDA runtime, where the device's memory is the host's."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def stream(self) -> int:
        return 40

    def synchronize(self, stream: int) -> None:
        pass

    def __call__(self, name: str, *arguments: Any) -> None:
        functions: dict[str, Callable[..., None]] = {
            "cudaMalloc": self.allocate,
            "cudaFree": self.free,
            "cudaMemcpy": self.copy,
        }
        functions[name](*arguments)

    def allocate(self, out: Any, size: ctypes.c_size_t) -> None:
        made = ctypes.create_string_buffer(size.value)
        out._obj.value = ctypes.addressof(made)
        self.held[ctypes.addressof(made)] = made

    def free(self, memory: ctypes.c_void_p) -> None:
        del self.held[memory.value or 0]

    def copy(self, to: Any, source: Any, nbytes: Any, kind: int) -> None:
        ctypes.memmove(to, source, nbytes.value)


class Collection:
    """A collection that only notes where it is asked to look up."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def forward(self, *batch: Any, out: Any, training: bool, stream: int) -> None:
        assert not training
        assert [one and one.shape for one in batch] == [(3,), (4,), None]
        assert out.shape == (3, 2)
        self.streams.append(stream)


@pytest.fixture
def fake() -> Iterator[LateFake]:
    made = LateFake()
    yield made
    assert made.device == 3


class Program:
    """Calls of `evaluate` on a fake device."""

    def __init__(self, fake: LateFake) -> None:
        self.collection = Collection()
        self.calls = Calls(HostRuntime())
        self.calls.device = 1
        order = CallOrder(Device(fake.capsule, 1))
        self.handle = Handle(self.collection, order, lambda ticket: None)

    def __call__(self, state: Any) -> Any:
        arguments = [state, INDICES, OFFSETS]
        return self.calls("evaluate", arguments, RESULTS, self.handle.ordinal)[1]


def test_a_call_waits_for_nothing(fake: LateFake) -> None:
    program = Program(fake)
    state = program.handle.new_state()
    assert np.array_equal(program(state), state)
    assert fake.take() == [("copy", "out", 40), ("record", EVENT, 40), ("copy", "in", 40)]
    program.calls.stream = 50  # behind the copy before
    program(state)
    assert fake.take() == [("wait", EVENT, 50), ("copy", "out", 50), ("record", EVENT, 50),
                           ("copy", "in", 50)]  # fmt: skip
    assert program.collection.streams == [40, 50]
    program.handle.check_state(state)
    assert fake.take() == [("wait_on_host", EVENT)]
    program.handle.check_state(state)
    assert fake.take() == []


def test_what_is_wrong_is_told_once_it_is_there(fake: LateFake) -> None:
    program = Program(fake)
    old, state = program.handle.new_state(), program.handle.new_state()
    program(old)
    program(state)  # nothing has come yet
    fake.land()
    for _ in range(2):
        with pytest.raises(HandlerError, match="StaleStateError: .*the state was used already"):
            program(state)
    assert len(program.collection.streams) == 2
    with pytest.raises(StaleStateError, match="the state was used already"):
        program.handle.check_state(state)
    assert np.array_equal(program(renewed := program.handle.new_state()), renewed)


def test_half_a_copy_is_none(fake: LateFake) -> None:
    program = Program(fake)
    old, state = program.handle.new_state(), program.handle.new_state()
    program(old)
    (to, values), *_ = fake.waiting
    ctypes.memmove(to, values, 12)
    program(state)
    ctypes.memmove(to, values, 16)
    with pytest.raises(HandlerError, match="the state was used already"):
        program(state)


def test_a_new_state_waits_and_tells(fake: LateFake) -> None:
    program = Program(fake)
    old = program.handle.new_state()
    program.handle.new_state()
    program(old)
    with pytest.raises(StaleStateError, match="the state was used already"):
        program.handle.new_state()
    assert ("wait_on_host", EVENT) in fake.take()
    program.handle.check_state(program.handle.new_state())


def test_a_call_waits_where_many_copies_are_under_way(fake: LateFake) -> None:
    program = Program(fake)
    state = program.handle.new_state()
    for _ in range(64):
        program(state)
    assert ("wait_on_host", EVENT) not in fake.take()
    program(state)
    assert fake.take()[0] == ("wait_on_host", EVENT)


def test_copies_end_before_their_memory_goes(fake: LateFake) -> None:
    program = Program(fake)
    program(program.handle.new_state())
    fake.take()
    del program
    names = [one[0] for one in fake.take()]
    assert names[:2] == ["wait_on_host", "destroy_event"]
    assert names.index("release") > names.index("wait_on_host")
