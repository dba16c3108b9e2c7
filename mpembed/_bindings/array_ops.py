"""Arrays of any device: NumPy's on the CPU, tensors elsewhere."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings import memory, tensor
from mpembed._bindings.device import DEVICE, PINNED_HOST, Device, Stream
from mpembed._bindings.tensor import Tensor

Shape = tuple[int, ...]
Array = Any  # numpy.ndarray or Tensor


def result(shape: Shape, dtype: npt.DTypeLike, on: Stream) -> Array:
    """Return a new array for what a call gives back, not initialised: on the CPU one of NumPy's."""
    return np.empty(shape, dtype) if on.device.synchronous else tensor.transient(on, shape, dtype)


def empty(device: Device, shape: Shape, dtype: npt.DTypeLike, *, host: bool = False) -> Array:
    """Return a new array of a collection, not initialised; `host` is pinned host memory."""
    if device.synchronous:
        return memory.empty(shape, dtype)
    return tensor.empty(device, shape, dtype, PINNED_HOST if host else DEVICE)


def full(
    device: Device, shape: Shape, dtype: npt.DTypeLike, value: Any, *, host: bool = False
) -> Array:
    """Return a new array of a collection with one value everywhere."""
    if device.synchronous and value == 0:  # fresh pages are zero: nothing is written
        return memory.zeros(shape, dtype)
    array = empty(device, shape, dtype, host=host)
    assign(array, value, device.stream(None))
    return array


def assign(array: Array, values: Any, on: Stream) -> None:
    """Set an array to one value or to a NumPy array's; a device is waited for."""
    if isinstance(array, Tensor):
        tensor.fill(array, values, on)
    else:
        array[...] = values


def row(array: Array, i: int) -> Array:
    """Return one row of an array, which shares its memory."""
    return tensor.row(array, i) if isinstance(array, Tensor) else array[i]


def piece(array: Array, begin: int, end: int) -> Array:
    """Return elements of an array's first dimension, which share its memory."""
    return tensor.piece(array, begin, end) if isinstance(array, Tensor) else array[begin:end]


def reshaped(array: Array, shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Return the memory of a whole array with another shape and type of the same bytes."""
    if isinstance(array, Tensor):
        return tensor.reshaped(array, shape, dtype)
    return array.reshape(-1).view(dtype).reshape(shape)


def read_only(array: Array, written: Stream) -> Array:
    """Return a view of an array that cannot be made writable; the stream wrote it last."""
    if isinstance(array, Tensor):
        return tensor.read_only(array, written)
    return np.asarray(memoryview(array).toreadonly())


def host(array: Array) -> npt.NDArray[Any]:
    """Return an array's values in a NumPy array: itself, or a copy."""
    return array.numpy() if isinstance(array, Tensor) else np.asarray(array)


def address(array: Array) -> int:
    """Return where an array's first element lies."""
    return array.address if isinstance(array, Tensor) else int(array.ctypes.data)


def upload(array: npt.NDArray[Any], on: Stream) -> Array:
    """Return a NumPy array's values where the stream's kernels run: itself, or a copy."""
    if on.device.synchronous:
        return array
    from mpembed._bindings.dlpack import view

    return tensor.from_view(view(array, "array"), on)
