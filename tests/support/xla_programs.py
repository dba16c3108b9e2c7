"""Programs that JAX runs on the CPU, with calls as on a CUDA device: arrays are copied there."""

from __future__ import annotations

import contextlib
import ctypes
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir
from jitted import tables
from on_device import OnDevice
from xla_calls import Array, Calls, HandlerError, pointer
from xla_structs import (
    HANDLER,
    I64,
    INTERNAL,
    TYPES,
    VOID,
    Buffer,
    CallFrame,
    ErrorArguments,
    Scalar,
    sized,
)

from mpembed._bindings import xla
from mpembed.jax import _primitives

NAMES = ("forward", "backward", "evaluate")
_emulated: Calls | None = None
_registered: list[Any] = []


def _forward_call(name: str, address: int) -> int:
    """Make a call of a program on the CPU as one on a device; return its error or 0."""
    frame = CallFrame.from_address(address)
    if frame.extensions:  # a question about the handler itself
        return int(HANDLER(pointer(xla.TARGETS["CUDA"][f"mpembed_{name}"]))(address) or 0)
    try:
        assert _emulated is not None
        assert frame.attributes.size == 1
        scalar = Scalar.from_address(frame.attributes.values[0])
        taken = _arrays(frame.results)
        made = _emulated(
            name,
            _arrays(frame.arguments),
            [(one.shape, one.dtype.name) for one in taken],
            I64.from_address(scalar.value).value,
        )
        for to, values in zip(taken, made, strict=True):
            to[...] = values
    except HandlerError as error:
        return _error(frame, error.code, str(error))
    except BaseException:
        return _error(frame, INTERNAL, traceback.format_exc())
    return 0


def _error(frame: Any, code: int, message: str) -> int:
    create = HANDLER(frame.api.contents.create_error)
    given = sized(ErrorArguments, code=code, message=message.encode())
    return int(create(ctypes.addressof(given)))


def _arrays(values: Any) -> list[Array]:
    """Return the arrays of a program on the CPU."""
    names = {number: name for name, number in TYPES.items()}
    made = []
    for i in range(values.size):
        buffer = Buffer.from_address(values.values[i])
        shape = tuple(buffer.dims[j] for j in range(buffer.rank))
        dtype = np.dtype(names[buffer.type])
        nbytes = int(np.prod(shape)) * dtype.itemsize
        made.append(np.zeros(shape, dtype))
        if nbytes:
            memory = (ctypes.c_uint8 * nbytes).from_address(buffer.data)
            made[-1] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    return made


def _lower(name: str, context: Any, *args: Any, results: Any, home: _primitives.Home) -> Any:
    if home.device == "cpu":
        return _primitives._lower(name, "cpu", context, *args, results=results, home=home)
    rule = jax.ffi.ffi_lowering(f"emulated_{name}", has_side_effect=True)
    return rule(context, *args, collection=np.int64(home.ordinal))


@contextlib.contextmanager
def emulate(calls: Calls) -> Iterator[None]:
    """Let programs on the CPU use collections on the device, by these calls."""
    global _emulated
    if not _registered:
        for name in NAMES:
            _registered.append(HANDLER(partial(_forward_call, name)))
            capsule = jax.ffi.pycapsule(ctypes.cast(_registered[-1], VOID))
            jax.ffi.register_ffi_target(f"emulated_{name}", capsule, platform="cpu")
    _emulated = calls
    rules: list[Callable[..., Any]] = [partial(_lower, name) for name in NAMES]
    own = [partial(_primitives._lower, name, "cpu") for name in NAMES]
    try:
        for name, rule in zip(NAMES, rules, strict=True):
            mlir.register_lowering(getattr(_primitives, name), rule, platform="cpu")
        yield
    finally:
        _emulated = None
        for name, rule in zip(NAMES, own, strict=True):
            mlir.register_lowering(getattr(_primitives, name), rule, platform="cpu")


def twins(device: str, precision: str = "int4", cached: bool = True) -> tuple[Any, Any, Any]:
    """Return a collection on a device, what compares it, and the same on the CPU."""
    one = tables(precision, cached, device=device)
    return one, OnDevice(one), tables(precision, cached)
