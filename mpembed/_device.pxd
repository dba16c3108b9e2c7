"""Devices, their streams and their memory."""

cimport cython
from libc.stdint cimport int32_t, int64_t

from mpembed._api cimport mpe_backend, mpe_status


@cython.final
cdef class Device:
    """One device of a backend."""

    cdef const mpe_backend* kernels
    cdef object capsule  # keeps the table's library alive
    cdef readonly str name  # "cpu", "cuda:0"
    cdef readonly int32_t index
    cdef readonly bint immediate  # a call returns when its work is done
    cdef Stream ordinary  # what `stream=None` means

    cdef int check(self, mpe_status status, str what) except -1
    cdef int32_t enter(self) except -1
    cdef int leave(self, int32_t previous, mpe_status status, str what) except -1
    cpdef Stream stream(self, object given)


@cython.final
cdef class Stream:
    """Where the work of a call is queued; the CPU's only one does it at once."""

    cdef readonly Device device
    cdef void* handle
    cdef object owner  # what the caller gave, which keeps the stream from being destroyed; or None

    cdef int synchronize(self, str what) except -1
    cdef int follow(self, void* other) except -1


@cython.final
cdef class Memory:
    """A piece of a device's memory, owned."""

    cdef readonly Device device
    cdef void* data
    cdef readonly int64_t nbytes
    cdef int32_t placement  # -1: borrowed in the order of `stream`
    cdef Stream home  # in whose order it goes back; None where it is not borrowed
    cdef Stream written  # the last one that writes it, for all tensors in it; None: the default one
    cdef list readers  # streams outside the library that may still read it, as Streams

    cdef int moved_to(self, Stream on) except -1
    cdef Stream writer(self)


@cython.final
cdef class Calls:
    """The calls of one collection, in order."""

    cdef readonly Device device
    cdef readonly Stream last  # the stream of the last call
    cdef object lock
    cdef Call one  # the CPU's, whose contexts are all the same
    cdef void* event  # behind the last call
    cdef int depth
    cdef int32_t previous

    cpdef Call on(self, object stream)
    cpdef Call again(self)
    cdef int begin(self, Stream on) except -1
    cdef int end(self) except -1


@cython.final
cdef class Call:
    """The context of one call; entering gives its stream."""

    cdef Calls calls
    cdef Stream stream  # None: that of the last call


cdef Stream stream_at(Device device, void* handle, object owner=?)
cdef Memory borrow(Stream on, int64_t nbytes)
cdef Memory allocate(Device device, int64_t nbytes, int32_t placement)
cdef int upload(Stream on, void* to, const void* source, int64_t nbytes) except -1
cdef int download(Stream on, void* to, const void* source, int64_t nbytes) except -1
