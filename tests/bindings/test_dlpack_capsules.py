"""Hand-made DLPack exporters: old, new, wrong and malicious ones."""

import ctypes
import gc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpembed import ops
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import DTYPES, require

F32 = DTYPES["float32"]


def refuse(obj: Any, error: type[Exception], text: str) -> None:
    """Check that an object is refused by an error that names the argument."""
    with pytest.raises(error, match=f"^arg: .*{re.escape(text)}"):
        view(obj, "arg")


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Legacy(ctypes.Structure):
    _fields_ = [("t", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("t", DLTensor),
    ]  # fmt: skip


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Exporter:
    """Exports what it is told to; counts how often its deleter ran."""

    def __init__(self, kind: type[Any] = Legacy, name: bytes = b"dltensor", **fields: Any) -> None:
        self.memory = np.arange(16, dtype=np.float32)
        self.shape = (ctypes.c_int64 * 2)(2, 3)
        self.deleted = 0
        self.name = name
        self.managed = kind()
        self.managed.t = DLTensor(
            self.memory.ctypes.data, 1, 0, 2, 2, 32, 1, ctypes.addressof(self.shape), None, 8
        )
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.count)
        self.managed.deleter = ctypes.cast(self.callback, ctypes.c_void_p)
        if kind is Versioned:
            self.managed.major = 1
        for field, value in fields.items():
            setattr(self.managed if field in ("flags", "major") else self.managed.t, field, value)

    def count(self, _: int) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, stream: None = None) -> Any:
        return new_capsule(ctypes.addressof(self.managed), self.name, None)


class NewExporter(Exporter):
    """Understands max_version."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(Versioned, b"dltensor_versioned", **fields)

    def __dlpack__(self, stream: None = None, max_version: tuple[int, int] | None = None) -> Any:
        assert max_version is not None
        assert max_version >= (1, 0)
        return super().__dlpack__()


@pytest.mark.parametrize("make", [Exporter, NewExporter])
def test_capsules(make: Callable[..., Exporter]) -> None:
    e = make()
    v = view(e, "arg")
    assert (v.shape, v.strides, v.dtype, v.contiguous) == ((2, 3), (3, 1), "float32", True)
    assert v.address == e.memory.ctypes.data + 8
    assert e.deleted == 0
    del v
    assert e.deleted == 1
    e = make(ndim=0, shape=None)
    assert view(e, "arg").shape == ()


def test_writable_flags() -> None:
    require(view(NewExporter(), "arg"), F32, writable=True)
    with pytest.raises(BufferError, match="read-only"):
        require(view(NewExporter(flags=1), "arg"), F32, writable=True)
    with pytest.raises(BufferError, match="older than 1.0"):
        require(view(Exporter(), "arg"), F32, writable=True)


@pytest.mark.parametrize("make", [Exporter, NewExporter])
@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"device_type": 2, "device_id": 1}, BufferError, "is on cuda:1"),
        ({"device_type": 99}, BufferError, "is on device type 99:0"),
        ({"data": None}, BufferError, "has elements but no memory"),
        ({"shape": None}, BufferError, "gives no shape"),
        ({"ndim": 9}, ValueError, "has 9 dimensions"),
        ({"ndim": -1}, ValueError, "has -1 dimensions"),
        ({"byte_offset": 2}, BufferError, "not aligned to 4 bytes"),
    ],
)
def test_bad_tensors(
    make: Callable[..., Exporter], fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    e = make(**fields)
    refuse(e, error, text)
    gc.collect()
    assert e.deleted == 1


def test_bad_shapes() -> None:
    for lengths, text in [((-1, 2), "is negative"), ((2**40, 2**40), "too large")]:
        e = Exporter()
        e.shape[0], e.shape[1] = lengths
        refuse(e, BufferError, text)


def test_other_major_version() -> None:
    e = NewExporter(major=2)
    refuse(e, BufferError, "exported by DLPack 2")
    gc.collect()
    assert e.deleted == 1


def test_bad_capsules() -> None:
    class Returns:
        def __init__(self, value: Any) -> None:
            self.value = value

        def __dlpack__(self, **_: Any) -> Any:
            return self.value

    e = Exporter()
    used = e.__dlpack__()
    view(Returns(used), "arg")
    address = ctypes.addressof(e.managed)
    bad = [used, None, 1, "capsule"]
    bad += [new_capsule(address, name, None) for name in (b"used_dltensor", b"wrong", None)]
    for value in bad:
        refuse(Returns(value), BufferError, "which is not an unused DLPack capsule")
    assert e.deleted == 1


@pytest.mark.parametrize("device", [None, 1, (1,), ("cpu", 0), (2, 0)])
def test_bad_devices(device: Any) -> None:
    class Odd(Exporter):
        def __dlpack_device__(self) -> Any:
            return device

    refuse(Odd(), BufferError, "is on cuda:0" if device == (2, 0) else "cannot be exported")


@pytest.mark.parametrize("device", [(2, 2**80), (2**80, 0), (1, -(2**80)), (1, 2**31)])
def test_numbers_of_devices_that_no_int32_holds(device: Any) -> None:
    class Far(Exporter):
        def __dlpack_device__(self) -> Any:
            return device

    refuse(Far(), BufferError, f"Far.__dlpack_device__ gives {device}, which is no device")
    with pytest.raises(BufferError, match="^indices: Far.__dlpack_device__ gives"):
        ops.unique_rows(Far())


def test_a_device_that_is_not_there() -> None:
    class Far(Exporter):
        def __dlpack_device__(self) -> Any:
            return 2, -1

    with pytest.raises(BufferError, match="^indices: is on a CUDA device, but .*cuda:-1"):
        ops.unique_rows(Far())


def test_exporter_raises() -> None:
    class Raises:
        def __dlpack__(self, **_: Any) -> Any:
            raise RuntimeError("no more")

    refuse(Raises(), BufferError, "Raises cannot be exported through DLPack: no more")


def test_forged_function_table() -> None:
    class Forged(Exporter):
        __dlpack_c_exchange_api__ = "no capsule"

    assert view(Forged(), "arg").shape == (2, 3)


FIELDS = {
    "ndim": st.integers(-2, 2), "device_type": st.integers(0, 18), "bits": st.integers(0, 255),
    "code": st.integers(0, 255), "lanes": st.integers(0, 4), "byte_offset": st.integers(0, 16),
}  # fmt: skip


@given(st.fixed_dictionaries({}, optional=FIELDS), st.lists(st.integers(-(2**63), 2**63 - 1),
       min_size=2, max_size=2), st.booleans())  # fmt: skip
def test_any_tensor_is_described_or_refused(
    fields: dict[str, int], lengths: list[int], new: bool
) -> None:
    e = NewExporter(**fields) if new else Exporter(Legacy, b"dltensor", **fields)
    e.shape[0], e.shape[1] = lengths
    try:
        v = view(e, "arg")
    except (TypeError, ValueError, BufferError) as error:
        assert str(error).startswith("arg: ")
    else:
        assert v.contiguous
        assert v.size == np.prod(v.shape, dtype=object)
        assert v.dtype in repr(v)
