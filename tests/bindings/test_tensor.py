"""Arrays on a device: copying, lending, and who may read when."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import mpembed as mpe
from mpembed import devices
from mpembed._bindings import tensor as tensors
from mpembed._bindings.device import PINNED_HOST
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import DTYPES, require

pytestmark = pytest.mark.gpu
DTYPE_NAMES = [name for name in DTYPES if name != "bfloat16"]
X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def on(cuda: str) -> Any:
    return devices.get(cuda).stream(None)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 5)])
@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_a_copy_there_and_back(name: str, shape: tuple[int, ...], cuda: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(name)
    tensor = mpe.to_device(array, cuda)
    assert (tensor.shape, tensor.dtype, tensor.size) == (shape, array.dtype, array.size)
    assert (tensor.nbytes, tensor.ndim, tensor.device) == (array.nbytes, len(shape), "cuda:0")
    back = tensor.numpy()
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    again = mpe.to_device(mpe.to_device(tensor, cuda), "cpu")
    assert isinstance(again, np.ndarray)
    assert again.tobytes() == array.tobytes()


def test_strided_arrays_and_bfloat16_are_copied(cuda: str) -> None:
    np.testing.assert_array_equal(mpe.to_device(X.T[::-1], cuda).numpy(), X.T[::-1])
    torch = pytest.importorskip("torch")
    half = torch.arange(5, dtype=torch.bfloat16)
    tensor = mpe.to_device(half, cuda)
    assert "bfloat16" in repr(tensor)
    np.testing.assert_array_equal(tensor.numpy(), half.view(torch.uint16).numpy())
    require(view(tensor, "x", devices.get(cuda).stream(None)), DTYPES["bfloat16"])
    with pytest.raises(AttributeError, match="BF16"):
        _ = tensor.__cuda_array_interface__


def test_what_a_tensor_says(cuda: str) -> None:
    tensor = mpe.to_device(X, cuda)
    assert repr(tensor) == "Tensor(shape=(3, 4), dtype=float32, device='cuda:0')"
    assert len(tensor) == 3
    assert tensor.placement == "device"
    for wrong in (lambda: np.asarray(tensor), lambda: bool(tensor), mpe.Tensor):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="no length"):
        len(mpe.to_device(np.array(1, np.float32), cuda))
    with pytest.raises(TypeError, match="^array: expected an array"):
        mpe.to_device([1.0], cuda)


def test_cuda_array_interface(cuda: str) -> None:
    tensor = mpe.to_device(X, cuda)
    told = tensor.__cuda_array_interface__
    assert told == {
        "version": 3,
        "shape": (3, 4),
        "typestr": "<f4",
        "data": (tensor.address, False),
        "strides": None,
        "stream": 1,
    }
    empty = mpe.to_device(np.zeros((0, 3), np.int64), cuda).__cuda_array_interface__
    assert empty["data"] == (0, False)


class Lender:
    """An exporter that hands on what a tensor lends, and notes what it was asked."""

    def __init__(self, tensor: Any, *, versioned: bool = True) -> None:
        self.tensor, self.versioned = tensor, versioned
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()  # type: ignore[no-any-return]

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(dict(options))
        if not self.versioned:
            if "max_version" in options:
                raise TypeError("max_version")
            return self.tensor.__dlpack__(**options)
        return self.tensor.__dlpack__(**options)


class Copying(Lender):
    """An exporter that hands on copies."""

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options | {"copy": True})


@pytest.mark.parametrize("versioned", [True, False])
def test_capsules_are_lent_and_given_back(versioned: bool, cuda: str, on: Any) -> None:
    tensor = mpe.to_device(X, cuda)
    lender = Lender(tensor, versioned=versioned)
    seen = view(lender, "x", on)
    assert (seen.shape, seen.strides, seen.dtype) == ((3, 4), (4, 1), "float32")
    assert seen.address == tensor.address
    assert seen.writable == versioned  # a legacy capsule cannot say so
    assert not seen.on_host
    assert lender.asked[-1]["stream"] == 1
    alive = weakref.ref(tensor)
    del tensor, lender
    gc.collect()
    assert alive() is not None
    del seen
    gc.collect()
    assert alive() is None
    unused = mpe.to_device(X, cuda).__dlpack__(max_version=(1, 0))
    assert "dltensor_versioned" in repr(unused)
    del unused
    assert "dltensor" in repr(mpe.to_device(X, cuda).__dlpack__())


def test_an_empty_tensor_is_lent(cuda: str, on: Any) -> None:
    seen = view(Lender(mpe.to_device(np.zeros((0, 3), np.float32), cuda)), "x", on)
    assert (seen.shape, seen.size) == ((0, 3), 0)


def test_streams_of_a_consumer(cuda: str) -> None:
    tensor = mpe.to_device(X, cuda)
    for stream in (None, 1, 2, -1):
        tensor.__dlpack__(stream=stream, max_version=(1, 1))
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"stream must not be {wrong}"):
            tensor.__dlpack__(stream=wrong)
    for text in ("1", True, 1.5):
        with pytest.raises(TypeError, match="stream must be an int or None"):
            tensor.__dlpack__(stream=text)


def test_copies_and_other_devices(cuda: str, on: Any) -> None:
    tensor = mpe.to_device(X, cuda)
    seen = view(Copying(tensor), "x", on)
    assert seen.address != tensor.address
    np.testing.assert_array_equal(mpe.to_device(Copying(tensor), "cpu"), X)
    np.testing.assert_array_equal(np.from_dlpack(tensor, device="cpu"), X)
    tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match=r"lies on cuda:0, not on \(2, 7\)"):
        tensor.__dlpack__(dl_device=(2, 7))
    with pytest.raises(BufferError, match=r"not on \(1, 0\)"):
        tensor.__dlpack__(dl_device=(1, 0), copy=False)


def test_a_read_only_tensor_is_never_written(cuda: str, on: Any) -> None:
    tensor = tensors.read_only(mpe.to_device(X, cuda), on)
    assert tensor.read_only
    assert tensor.__cuda_array_interface__["data"][1] is True
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()
    assert not view(Lender(tensor), "x", on).writable
    with pytest.raises(BufferError, match="^out: is written to, but is read-only"):
        mpe.ops.dequantize(mpe.to_device(np.zeros((3, 16), np.uint8), cuda), "fp32", 4, out=tensor)


def test_pinned_host_memory_is_read_by_both(cuda: str, on: Any) -> None:
    device = devices.get(cuda)
    tensor = tensors.empty(device, (3, 4), np.float32, PINNED_HOST)
    tensors.fill(tensor, X, on)
    assert tensor.placement == "host"
    assert repr(tensor) == "Tensor(shape=(3, 4), dtype=float32, device='cuda:0', placement='host')"
    assert tensor.__dlpack_device__() == (3, 0)
    with pytest.raises(AttributeError, match="host memory"):
        _ = tensor.__cuda_array_interface__
    np.testing.assert_array_equal(np.asarray(view(tensor, "x")), X)
    np.testing.assert_array_equal(np.asarray(view(Lender(tensor), "x")), X)
    assert view(tensor, "x", on).address == tensor.address
    rows = mpe.ops.quantize(X, "int8")
    np.testing.assert_array_equal(mpe.ops.quantize(tensor, "int8"), rows)  # on the CPU
    copy = np.from_dlpack(Copying(tensor))  # what __dlpack_device__ says: the host's memory too
    tensors.fill(tensor, 5, on)
    np.testing.assert_array_equal(copy, X)
    for value in (0, 7):
        tensors.fill(tensor, value, on)
        assert (tensor.numpy() == value).all()
