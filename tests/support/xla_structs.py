"""The structs of XLA's C interface of foreign functions; test_jax_abi.py compares mpembed's."""

from __future__ import annotations

import ctypes
from typing import Any

I32, I64, SIZE, VOID, TEXT = (
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_char_p,
)
HANDLER = ctypes.CFUNCTYPE(VOID, VOID)
#: XLA's numbers of element types.
TYPES = {"int32": 4, "int64": 5, "float32": 11, "float64": 12}
EXECUTE, BUFFER, SCALAR, INTERNAL = 3, 1, 3, 13


def struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    """Return a struct of the interface, which begins with its size and its extensions."""
    head = [("struct_size", SIZE), ("extensions", VOID)]
    return type(name, (ctypes.Structure,), {"_fields_": [*head, *fields.items()]})


ErrorArguments = struct("ErrorArguments", message=TEXT, code=ctypes.c_int)
StreamArguments = struct("StreamArguments", context=VOID, stream=VOID)
DeviceArguments = struct("DeviceArguments", context=VOID, device=I32)
Version = struct("Version", major=ctypes.c_int, minor=ctypes.c_int)
Buffer = struct("Buffer", type=ctypes.c_int, data=VOID, rank=I64, dims=ctypes.POINTER(I64))
Values = struct("Values", size=I64, types=ctypes.POINTER(ctypes.c_int), values=ctypes.POINTER(VOID))
Attributes = struct(
    "Attributes",
    size=I64,
    types=ctypes.POINTER(ctypes.c_int),
    names=ctypes.POINTER(VOID),
    values=ctypes.POINTER(VOID),
)
Api = struct(
    "Api",
    version=Version,
    internal=VOID,
    create_error=VOID,
    before_get_stream=VOID * 3,
    get_stream=VOID,
    before_get_device=VOID * 12,
    get_device=VOID,
)
CallFrame = struct(
    "CallFrame",
    api=ctypes.POINTER(Api),
    context=VOID,
    stage=ctypes.c_int,
    arguments=Values,
    results=Values,
    attributes=Attributes,
    future=VOID,
)


class Text(ctypes.Structure):
    _fields_ = [("begin", TEXT), ("size", SIZE)]


class Scalar(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("value", VOID)]


def sized(kind: type[ctypes.Structure], **fields: Any) -> Any:
    return kind(struct_size=ctypes.sizeof(kind), **fields)
