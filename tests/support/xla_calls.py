"""Calls of handlers as XLA makes them in a program for a CUDA device, without such a program.

A call gets arguments and results in the device's memory, a stream that is not the default, and the
functions of an Api.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from xla_structs import (
    BUFFER,
    EXECUTE,
    HANDLER,
    I64,
    INTERNAL,
    SCALAR,
    SIZE,
    TEXT,
    TYPES,
    VOID,
    Api,
    Attributes,
    Buffer,
    CallFrame,
    DeviceArguments,
    ErrorArguments,
    Scalar,
    StreamArguments,
    Text,
    Values,
    Version,
    sized,
)

from mpembed._bindings import xla
from mpembed_gpu.runtime import TO_DEVICE, TO_HOST

Array = npt.NDArray[Any]


class HandlerError(Exception):
    """What a handler answered: a code of XLA's and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Calls:
    """The runtime of programs on one device and stream.

    Attributes
    ----------
    device : int
        What it says when it is asked for the device.
    refuses_stream : bool
        Whether it has no stream to give.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.stream, self.device = runtime, runtime.stream(), 0
        self.refuses_stream = False
        self.errors: list[tuple[int, str]] = []
        self._functions = [
            HANDLER(self._create_error), HANDLER(self._get_stream), HANDLER(self._get_device),
        ]  # fmt: skip
        create, stream, device = (ctypes.cast(one, VOID) for one in self._functions)
        self.api = sized(Api, create_error=create, get_stream=stream, get_device=device)
        self.api.version = sized(Version, major=0, minor=3)

    def _create_error(self, given: int) -> int:
        error = ErrorArguments.from_address(given)
        self.errors.append((error.code, error.message.decode()))
        return len(self.errors)  # an address that is not zero

    def _get_stream(self, given: int) -> int:
        if self.refuses_stream:
            self.errors.append((INTERNAL, "no stream"))
            return len(self.errors)
        StreamArguments.from_address(given).stream = self.stream
        return 0

    def _get_device(self, given: int) -> int:
        DeviceArguments.from_address(given).device = self.device
        return 0

    def __call__(
        self,
        name: str,
        arguments: Sequence[Array],
        results: Sequence[tuple[tuple[int, ...], str]],
        collection: int | None = None,
        types: dict[int, int] | None = None,
    ) -> list[Array]:
        """Call a handler; return its results.

        Parameters
        ----------
        name : str
            "forward", "backward" or "evaluate".
        arguments, results
            Arrays; shapes and types.
        collection : int, optional
            The attribute of that name.
        types : dict of int -> int, optional
            Types that arguments get instead of their own, as XLA numbers them.

        Raises
        ------
        HandlerError
            If it answers with an error.
        """
        made = [np.zeros(shape, dtype) for shape, dtype in results]
        given = [self._buffer(one) for one in arguments]
        taken = [self._buffer(one) for one in made]
        for i, kind in (types or {}).items():
            given[i].type = kind
        frame = sized(CallFrame, api=ctypes.pointer(self.api), stage=EXECUTE)
        frame.arguments, frame.results = _values(given), _values(taken)
        frame.attributes, self._kept = _attributes(collection)
        handler = HANDLER(pointer(xla.TARGETS["CUDA"][f"mpembed_{name}"]))
        failed = handler(ctypes.addressof(frame))
        self.runtime.synchronize(self.stream)
        for buffer, array in zip(taken, made, strict=True):
            self._copy(array.ctypes.data, buffer.data, array.nbytes, TO_HOST)
        for buffer in (*given, *taken):  # nothing may be read any more
            self.runtime("cudaFree", VOID(buffer.data))
        if failed:
            raise HandlerError(*self.errors[-1])
        return made

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        if nbytes:
            self.runtime("cudaMemcpy", VOID(to), VOID(source), SIZE(nbytes), kind)

    def _buffer(self, array: Array) -> Any:
        """Return a copy of an array in the device's memory."""
        values, memory = np.ascontiguousarray(array), VOID()
        self.runtime("cudaMalloc", ctypes.byref(memory), SIZE(max(values.nbytes, 1)))
        self._copy(memory.value or 0, values.ctypes.data, values.nbytes, TO_DEVICE)
        dims = (I64 * values.ndim)(*values.shape)
        kind = TYPES[values.dtype.name]
        return sized(Buffer, type=kind, data=memory, rank=values.ndim, dims=dims)


def _values(buffers: Sequence[Any]) -> Any:
    count = len(buffers)
    addresses = (VOID * count)(*map(ctypes.addressof, buffers))
    types = (ctypes.c_int * count)(*[BUFFER] * count)
    return sized(Values, size=count, types=types, values=addresses)


def _attributes(collection: int | None) -> tuple[Any, list[Any]]:
    """Return the attributes, and what has to live as long."""
    if collection is None:
        return sized(Attributes), []
    names = [Text(b"another", 7), Text(b"collection", 10)]
    numbers = [I64(-7), I64(collection)]
    scalars = [Scalar(TYPES["int64"], ctypes.addressof(one)) for one in numbers]
    made = sized(Attributes, size=2, types=(ctypes.c_int * 2)(SCALAR, SCALAR))
    made.names = (VOID * 2)(*map(ctypes.addressof, names))
    made.values = (VOID * 2)(*map(ctypes.addressof, scalars))
    return made, [names, numbers, scalars]


def pointer(capsule: object) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = VOID, [ctypes.py_object, TEXT]
    found = get(capsule, b"xla._CUSTOM_CALL_TARGET")
    assert isinstance(found, int)
    return found
