"""Arrays in device memory."""

cimport cython
from libc.stdint cimport int64_t

from mpembed._bindings.device cimport Memory, Stream
from mpembed._bindings.dlpack_c cimport DLDataType, DLDevice
from mpembed._bindings.view cimport MAX_NDIM, View


@cython.final
cdef class Tensor:
    """A C-contiguous array in a device's memory."""

    cdef readonly Memory memory
    cdef char* data
    cdef readonly int ndim
    cdef int64_t extent[MAX_NDIM]
    cdef DLDataType type
    cdef readonly bint read_only
    cdef object __weakref__

    cdef DLDevice place(self) noexcept
    cdef int readable_on(self, Stream on) except -1


cdef View view_of(Tensor tensor, str name)
