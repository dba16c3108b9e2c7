"""Arrays in device memory: owned here, lent through DLPack and ``__cuda_array_interface__``."""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp

from mpembed._bindings.api cimport MPE_PLACEMENT_HOST
from mpembed._bindings.device cimport (
    Device, Memory, Stream, allocate, borrow, download, stream_at, upload)
from mpembed._bindings.dlpack_c cimport (
    DLPACK_FLAG_BITMASK_IS_COPIED, DLPACK_FLAG_BITMASK_READ_ONLY, DLDevice, DLManagedTensor,
    DLManagedTensorVersioned, DLTensor, kDLBfloat, kDLBool, kDLCUDA, kDLCUDAHost, kDLFloat,
    kDLInt, kDLUInt)
from mpembed._bindings.launch cimport launch
from mpembed._bindings.view cimport MAX_NDIM, View, finish

import math

import numpy as np

cnp.import_array()

cdef dict CODES = {"f": kDLFloat, "i": kDLInt, "u": kDLUInt, "b": kDLBool}
cdef dict LETTERS = {kDLFloat: "f", kDLInt: "i", kDLUInt: "u", kDLBool: "b"}
cdef int64_t CHUNK = 1 << 24  # bytes of the host's memory that `full` fills at a time


# What dies in the same garbage may still use the memory.
@cython.no_gc_clear
cdef class Tensor:
    """A C-contiguous array in a device's memory.

    Made by `mpembed.to_device` and by the calls that return arrays on a device. It lends its memory
    through DLPack (``torch.from_dlpack(tensor)``) and ``__cuda_array_interface__``.
    """

    def __init__(self):
        raise TypeError("tensors are made by mpembed.to_device() and by calls on a device")

    @property
    def shape(self):
        """Lengths of the dimensions."""
        return tuple([self.extent[i] for i in range(self.ndim)])

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self):
        """NumPy's element type; for BF16, which NumPy has not, that of its bits: uint16."""
        return np.dtype(f"{LETTERS.get(self.type.code, 'u')}{self.type.bits // 8}")

    @property
    def nbytes(self):
        """Bytes of all elements."""
        return self.size * (self.type.bits // 8)

    @property
    def address(self):
        """Address of the first element."""
        return <uintptr_t>self.data

    @property
    def device(self):
        """The device's name: ``"cuda:0"``."""
        return self.memory.device.name

    @property
    def placement(self):
        """``"device"``, or ``"host"`` for pinned host memory."""
        return "host" if self.memory.placement == MPE_PLACEMENT_HOST else "device"

    def numpy(self):
        """Return a copy in a NumPy array, once the work that writes the tensor is done."""
        from mpembed._bindings.memory import empty

        array = empty(self.shape, self.dtype)
        if array.size:
            download(self.memory.writer(), cnp.PyArray_DATA(array), self.data, array.nbytes)
        return array

    def __len__(self):
        if self.ndim == 0:
            raise TypeError("a tensor without dimensions has no length")
        return self.extent[0]

    def __bool__(self):
        raise TypeError("the values of a tensor lie on the device: use tensor.numpy()")

    def __array__(self, *args, **kwargs):
        raise TypeError(f"the tensor lies on {self.device}: use tensor.numpy()")

    def __repr__(self):
        where = f"{self.device!r}, placement='host'" if self.placement == "host" else repr(
            self.device)
        return f"Tensor(shape={self.shape}, dtype={dtype_name(self)}, device={where})"

    cdef DLDevice place(self) noexcept:
        cdef DLDevice at
        at.device_type = kDLCUDAHost if self.memory.placement == MPE_PLACEMENT_HOST else kDLCUDA
        at.device_id = self.memory.device.index
        return at

    cdef int readable_on(self, Stream on) except -1:
        """Order what `on` is given after the work that writes the tensor."""
        cdef Stream writer = self.memory.writer()
        if on.handle == writer.handle:
            return 0
        if not on.wait_for(writer):
            return 0
        if self.memory.placement < 0:  # it may not go back before that stream has read it
            if self.memory.readers is None:
                self.memory.readers = []
            if all([(<Stream>known).handle != on.handle for known in self.memory.readers]):
                self.memory.readers.append(on)
        return 0

    # ---- export ------------------------------------------------------------------------------

    def __dlpack_device__(self):
        cdef DLDevice at = self.place()
        return at.device_type, at.device_id

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export for a consumer that works on `stream`.

        Parameters
        ----------
        stream : int, optional
            1 or None the legacy default stream, 2 the per-thread one (the tensor has to be
            dropped by the same thread), -1 no ordering, else a handle.
        max_version : tuple of int, optional
            The consumer's DLPack; without it, or before 1.0, a legacy capsule is made.
        dl_device : tuple of int, optional
            The own device, or ``(1, 0)`` for a copy in the CPU's memory.
        copy : bool, optional
            True for a copy, False to refuse one.
        """
        cdef Tensor source = self
        own = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != own:
            if tuple(dl_device) != (1, 0) or copy is False:
                raise BufferError(f"the tensor lies on {self.device}, not on {tuple(dl_device)}")
            if self.type.code == kDLBfloat:  # an array of NumPy's would say uint16
                raise BufferError("a tensor of BF16 is not copied to the host by DLPack: copy it "
                                  "with its consumer on the device, or take the bits, .numpy()")
            array = self.numpy()
            return array.__dlpack__(max_version=max_version)
        if copy:
            source = copied(self)
        order_for_consumer(source, stream)
        if max_version is not None and max_version[0] >= 1:
            return versioned_capsule(source, bool(copy))
        if source.read_only:
            raise BufferError("the tensor is read-only, which DLPack cannot say before 1.0")
        return legacy_capsule(source)

    @property
    def __cuda_array_interface__(self):
        if self.memory.placement == MPE_PLACEMENT_HOST:
            raise AttributeError("the tensor lies in host memory")
        if self.type.code == kDLBfloat:
            raise AttributeError("__cuda_array_interface__ has no BF16: use DLPack")
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (<uintptr_t>self.data if self.size else 0, bool(self.read_only)),
            "strides": None,
            "stream": self.memory.writer().number,
        }


cdef str dtype_name(Tensor t):
    return "bfloat16" if t.type.code == kDLBfloat else t.dtype.name


cdef int order_for_consumer(Tensor t, object stream) except -1:
    cdef uintptr_t handle
    if stream is not None and (isinstance(stream, bool) or not isinstance(stream, int)):
        raise TypeError(f"stream must be an int or None, got {type(stream).__name__}")
    if t.memory.placement == MPE_PLACEMENT_HOST:  # read by the host, which knows no streams
        return t.memory.writer().synchronize("waiting for the tensor")
    if stream is not None and (stream == 0 or stream < -1):
        raise ValueError(f"stream must not be {stream}: 1 is the default stream, 2 the per-thread "
                         "one, -1 means no ordering")
    if stream == -1:
        return 0
    if stream != 2:
        return t.readable_on(t.memory.device.stream(1 if stream is None else stream))
    handle = 2  # refused elsewhere; here it is the calling thread's, as the protocol has it
    return t.readable_on(stream_at(t.memory.device, <void*>handle))


cdef View view_of(Tensor tensor, str name):
    """Return what kernels see of a tensor."""
    cdef View v = View.__new__(View)
    cdef int i
    v.name, v.owner = name, tensor
    v.data = tensor.data
    v.device, v.type, v.ndim = tensor.place(), tensor.type, tensor.ndim
    v.writable = not tensor.read_only
    for i in range(v.ndim):
        v.extent[i] = tensor.extent[i]
    for i in range(v.ndim - 1, -1, -1):
        v.stride[i] = 1 if i == v.ndim - 1 else v.stride[i + 1] * v.extent[i + 1]
    finish(v)
    return v


include "tensor/making.pxi"
include "tensor/capsules.pxi"
