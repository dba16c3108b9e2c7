"""A backend of Python functions, which notes what it is asked for.

An emulation runs everything at once, so it cannot show in which order calls wait for each other.
"""

from __future__ import annotations

import ctypes
from typing import Any

import api_header

I32, I64, VOID = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
# The beginning of mpe_backend: the memory functions; the kernels behind them stay NULL.
FUNCTIONS: dict[str, list[Any]] = {
    "device_count": [VOID],
    "describe": [I32, VOID],
    "current_device": [ctypes.POINTER(I32)],
    "use_device": [I32],
    "device_in_use": [I32, ctypes.POINTER(I32)],
    "allocate": [I64, I32, ctypes.POINTER(VOID)],
    "release": [VOID, I32],
    "borrow": [I64, VOID, ctypes.POINTER(VOID)],
    "give_back": [VOID, VOID],
    "copy": [VOID, VOID, I64, VOID],
    "fill": [VOID, I32, I64, VOID],
    "synchronize": [VOID],
    "create_event": [ctypes.POINTER(VOID)],
    "destroy_event": [VOID],
    "record": [VOID, VOID],
    "wait": [VOID, VOID],
    "wait_on_host": [VOID],
    "capturing": [VOID, ctypes.POINTER(ctypes.c_uint64)],
    "wait_in_graph": [VOID, VOID],
    "record_in_graph": [VOID, VOID],
    "last_error": [],
}


class Table(ctypes.Structure):
    _fields_ = [
        ("api_version", I32),
        ("name", ctypes.c_char_p),
        ("level", ctypes.c_char_p),
        *((name, VOID) for name in FUNCTIONS),
        ("kernels", VOID * 64),
    ]


class Fake:
    """A backend of one device, number 1, which notes calls; the thread begins on device 3."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.device, self.events, self.blocks = 3, 100, 1 << 20
        self.table = Table(api_header.version(), b"fake", b"none")
        self.in_use = {1, 3}
        self.captured: dict[int, int] = {}  # a stream's capture
        self.kept: list[Any] = []
        self.message = ctypes.create_string_buffer(b"it failed")
        for name, types in FUNCTIONS.items():
            result = VOID if name == "last_error" else I32
            function = ctypes.CFUNCTYPE(result, *types)(
                getattr(self, f"do_{name}", self.note(name))
            )
            self.kept.append(function)
            setattr(self.table, name, ctypes.cast(function, VOID))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [VOID, ctypes.c_char_p, VOID]
        self.name = b"mpembed.backend"
        self.capsule = new(ctypes.addressof(self.table), self.name, None)

    def note(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.said.append((name, *(a or 0 for a in arguments)))
            return 0

        return function

    def do_current_device(self, out: Any) -> int:
        out[0] = self.device
        return 0

    def do_use_device(self, device: int) -> int:
        self.device = device
        self.said.append(("use", device))
        return 0

    def do_device_in_use(self, device: int, out: Any) -> int:
        out[0] = device in self.in_use
        return 0

    def do_create_event(self, out: Any) -> int:
        self.events += 1
        out[0] = self.events
        return 0

    def do_allocate(self, nbytes: int, placement: int, out: Any) -> int:
        self.kept.append(ctypes.create_string_buffer(nbytes))
        out[0] = ctypes.addressof(self.kept[-1])
        return 0

    def do_borrow(self, nbytes: int, stream: int | None, out: Any) -> int:
        self.blocks += 4096
        out[0] = self.blocks
        return 0

    def do_capturing(self, stream: int | None, out: Any) -> int:
        out[0] = self.captured.get(stream or 0, 0)
        return 0

    def do_last_error(self) -> int:
        return ctypes.addressof(self.message)

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was said since, without the device."""
        said, self.said = self.said, []
        return [one for one in said if one[0] != "use"]
