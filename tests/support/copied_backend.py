"""A copy of a backend's function table, in which functions are wrapped."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import api_header

from mpembed._bindings.device import Device

CAPSULE = b"mpembed.backend"
FIRST = 3  # before the functions are the version and two texts


_made: list[CopiedBackend] = []  # kept for good: a device does not keep its functions alive


class CopiedBackend:
    """A backend's functions, to be replaced one by one, and a device of them."""

    def __init__(self, capsule: Any, index: int = 0) -> None:
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self._names, self._kept = api_header.table(), [capsule]
        size = FIRST + len(self._names)
        real = ctypes.string_at(get(capsule, CAPSULE), size * ctypes.sizeof(ctypes.c_void_p))
        self._table = (ctypes.c_void_p * size).from_buffer_copy(real)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._capsule, self._index = new(ctypes.addressof(self._table), CAPSULE, None), index
        _made.append(self)

    def wrap(self, name: str, arguments: int, around: Callable[..., int]) -> None:
        """Let a function of so many pointers call `around(real, *arguments)`."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * arguments)
        place = FIRST + self._names.index(name)
        address = self._table[place]
        assert address is not None
        real = kind(address)
        made = kind(lambda *given: around(real, *given))
        self._table[place] = ctypes.cast(made, ctypes.c_void_p).value
        self._kept.append(made)

    def device(self) -> Device:
        """Return a device whose kernels are the functions as they are now."""
        return Device(self._capsule, self._index)
