from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

DEVICE: int
PINNED_HOST: int

@final
class Stream:
    device: Device
    @property
    def address(self) -> int: ...
    @property
    def number(self) -> int: ...
    capture: int
    def clear(self, address: int, nbytes: int) -> None: ...

@final
class Device:
    name: str
    index: int
    dlpack: tuple[int, int]
    synchronous: bool
    raises_at_once: bool
    def __init__(self, capsule: object, index: int) -> None: ...
    @property
    def level(self) -> str: ...
    def stream(self, given: Any) -> Stream: ...
    def synchronize(self, stream: Any = None) -> None: ...

@final
class Memory:
    device: Device
    nbytes: int
    @property
    def pinned_host(self) -> bool: ...
    def used_by(self, calls: CallOrder) -> None: ...

@final
class CallLock:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def after_fork(self) -> None: ...

@final
class Call:
    def __enter__(self) -> Stream: ...
    def __exit__(self, kind: object, error: object, trace: object) -> None: ...

@final
class CallEvents: ...

@final
class CallOrder:
    device: Device
    last: Stream
    later: Callable[[Stream], None] | None
    half_done: str | None
    @property
    def was_captured(self) -> bool: ...
    def __init__(self, device: Device) -> None: ...
    def on_stream(
        self,
        stream: Any,
        refuse: Callable[[Stream], None] | None = None,
        changes: bool = False,
        holds: bool = False,
    ) -> Call: ...
    def on_last_stream(
        self,
        refuse: Callable[[Stream], None] | None = None,
        changes: bool = False,
        first: Callable[[Stream], None] | None = None,
        holds: bool = False,
        alone: bool = False,
        repairs: bool = False,
    ) -> Call: ...
    def inside(
        self, refuse: Callable[[Stream], None] | None = None, alone: bool = False
    ) -> Call: ...
    def on_last_stream_if_free(
        self, refuse: Callable[[Stream], None] | None = None
    ) -> AbstractContextManager[Stream | None]: ...

def count_devices(capsule: object) -> int: ...
def describe(capsule: object, index: int) -> tuple[str, int, tuple[int, int]]: ...
def fail_borrow(n: int) -> int: ...
def backend_level(capsule: object) -> str: ...
