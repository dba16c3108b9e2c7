"""Devices, their streams and their memory: the part of the C API that is not kernels."""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport UINT64_MAX, int32_t, int64_t, uint64_t, uintptr_t

from mpembed._bindings.api cimport (
    MPE_API_VERSION, MPE_ERR_MEMORY, MPE_ERR_VALUE, MPE_OK, MPE_PLACEMENT_DEVICE,
    MPE_PLACEMENT_HOST, mpe_backend,
    mpe_device)
from mpembed._bindings.launch cimport Outcome, call, copy_and_wait, enter, launch, leave
from mpembed._bindings.tracing cimport TRACE_DOMAIN, trace, untrace

import os
import threading
import weakref

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define MPE_IS_FINALIZING Py_IsFinalizing
    #else
    #define MPE_IS_FINALIZING _Py_IsFinalizing
    #endif

    namespace mpembed_bindings {

    // For tests: until the borrowing that finds no memory; 0: none.
    static int64_t borrows_until_failure = 0;

    static bool borrow_fails() {
      return borrows_until_failure > 0 && --borrows_until_failure == 0;
    }

    // A backend whose workspace can fail, and whose borrowings tracemalloc counts if they are the
    // host's own memory.
    template <bool host>
    struct Borrowing {
      static inline const mpe_backend* real = nullptr;
      static inline mpe_backend table{};

      static mpe_status borrow(int64_t bytes, void* stream, void** out) {
        if (borrow_fails()) return MPE_ERR_MEMORY;
        const mpe_status status = real->borrow(bytes, stream, out);
        if (host && status == MPE_OK) {
          tracing::PyTraceMalloc_Track(TRACE_DOMAIN, reinterpret_cast<uintptr_t>(*out), bytes);
        }
        return status;
      }
      static void give_back(void* p, void* stream) {
        if (host) tracing::PyTraceMalloc_Untrack(TRACE_DOMAIN, reinterpret_cast<uintptr_t>(p));
        real->give_back(p, stream);
      }
      static const mpe_backend* over(const mpe_backend* backend) {
        if (real == nullptr) {
          real = backend;
          table = *backend;
          table.borrow = borrow;
          table.give_back = give_back;
        }
        return real == backend ? &table : backend;
      }
    };

    static const mpe_backend* with_borrowing(const mpe_backend* backend, bool host) {
      return host ? Borrowing<true>::over(backend) : Borrowing<false>::over(backend);
    }

    }  // namespace mpembed_bindings
    """
    bint is_finalizing "MPE_IS_FINALIZING" () noexcept
    int64_t borrows_until_failure "mpembed_bindings::borrows_until_failure"
    bint borrow_fails "mpembed_bindings::borrow_fails" () noexcept
    const mpe_backend* with_borrowing "mpembed_bindings::with_borrowing" (
        const mpe_backend* backend, bint host) noexcept

DEVICE, PINNED_HOST = MPE_PLACEMENT_DEVICE, MPE_PLACEMENT_HOST
cdef str ORDERING = "ordering streams"


def count_devices(capsule):
    """Return how many devices a backend sees; RuntimeError with its runtime's words if it fails."""
    cdef const mpe_backend* kernels = _table(capsule)
    cdef int32_t count = 0
    if kernels.device_count(&count) != MPE_OK:
        raise RuntimeError(kernels.last_error().decode("utf-8", "replace"))
    return count


def describe(capsule, int32_t index):
    """Return a device's name, bytes of memory and compute capability."""
    cdef const mpe_backend* kernels = _table(capsule)
    cdef mpe_device found
    if kernels.describe(index, &found) != MPE_OK:
        raise RuntimeError(kernels.last_error().decode("utf-8", "replace"))
    return found.name.decode("utf-8", "replace"), found.memory, (found.major, found.minor)


def backend_level(capsule):
    """Return the instruction set or the architectures that a backend was compiled for."""
    return _table(capsule).level.decode()


cdef const mpe_backend* _table(object capsule) except NULL:
    cdef const mpe_backend* kernels = <const mpe_backend*>PyCapsule_GetPointer(
        capsule, "mpembed.backend")
    if kernels.api_version != MPE_API_VERSION:
        raise RuntimeError(
            f"the {kernels.name.decode()} backend speaks version {kernels.api_version} of "
            f"mpembed/api.h, this mpembed {MPE_API_VERSION}: build both from one source")
    return kernels


cdef class Device:

    def __init__(self, capsule, int32_t index):
        self.kernels = _table(capsule)
        self.capsule = capsule
        self.index = index
        self.target.kernels, self.target.index = self.kernels, index
        self.name = self.kernels.name.decode()
        self.synchronous = self.raises_at_once = self.name == "cpu"
        self.step_kernels = with_borrowing(self.kernels, self.synchronous)
        if self.synchronous:
            self.dlpack = 1, 0
        else:
            self.name, self.dlpack = f"{self.name}:{index}", (2, index)
        self.default_stream = stream_at(self, NULL)

    @property
    def level(self):
        """Instruction set or architectures of the kernels."""
        return self.kernels.level.decode()

    cdef int check(self, Outcome outcome, str what) except -1:
        """Raise what has failed in a call, which `what` describes."""
        return 0 if outcome.status == MPE_OK else self.raise_failure(outcome, what)

    cdef int raise_failure(self, Outcome outcome, str what) except -1:
        if outcome.step != NULL:
            what = outcome.step.decode()
        reason = self.kernels.last_error().decode("utf-8", "replace")
        if outcome.status == MPE_ERR_VALUE:  # a kernel's own check, of which no runtime knows
            reason = "an argument that the kernel does not support"
        elif self.synchronous:  # the CPU's runtime fails for want of memory alone
            reason = "not enough memory"
        if outcome.status == MPE_ERR_MEMORY:
            raise MemoryError(f"{what} on {self.name}: {reason}")
        raise RuntimeError(f"{what} on {self.name}: {reason} (status {<int>outcome.status})")

    cpdef Stream stream(self, object given):
        """Return the stream that a caller means.

        Parameters
        ----------
        given : None, int or object
            None is the legacy default stream, an int a handle (0 is the default stream too), an
            object has ``__cuda_stream__`` and is kept for as long as its stream is needed. On the
            CPU only None.
        """
        cdef Stream made
        if given is None:
            # An error while a stream is captured that it would wait for.
            self.default_stream.query_capture()
            return self.default_stream
        if self.synchronous:
            raise ValueError("stream must be None on the CPU")
        handle = _handle_of(given)
        if handle < 0 or handle >= 1 << 64:
            raise ValueError(f"stream must be the handle of a stream, got {handle}")
        if handle == 2:  # the same name in every thread, of as many streams
            raise ValueError("stream must not be CUDA's per-thread default stream (2), which is "
                             "another one in each thread; pass a stream of your own")
        made = stream_at(self, <void*><uintptr_t>handle, given)
        made.query_capture()
        return made

    def synchronize(self, stream=None):
        """Wait until all work that a stream was given is done."""
        cdef Stream on = self.stream(stream)
        on.synchronize("synchronising")

    def __repr__(self):
        return f"Device({self.name!r})"


cdef object _handle_of(object given):
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    protocol = getattr(given, "__cuda_stream__", None)
    if protocol is None:
        raise TypeError(
            "stream must be None, the handle of a CUDA stream as an int, or an object with "
            f"__cuda_stream__, got {type(given).__name__}")
    version, handle = protocol() if callable(protocol) else protocol
    if version != 0:
        raise ValueError(f"stream: version {version} of __cuda_stream__ is not known, 0 is")
    return int(handle)


# What dies in the same garbage still goes back on it.
@cython.no_gc_clear
cdef class Stream:

    def __init__(self):
        raise TypeError("streams are made by Device.stream()")

    @property
    def address(self):
        """The handle."""
        return <uintptr_t>self.handle

    @property
    def number(self):
        """The handle as DLPack and ``__cuda_array_interface__`` want it: 1 is the default."""
        return <uintptr_t>self.handle or 1

    cdef int query_capture(self) except -1:
        """Find out which capture the stream is part of now."""
        cdef uint64_t capture = 0
        if self.device.synchronous:  # which has no graphs; every borrowing asks
            return 0
        self.device.check(
            call(self.device.target, self.device.kernels.capturing, self.handle, &capture),
            "asking for captures")
        self.capture = capture
        return 0

    cdef int refuse_capture(self, str what) except -1:
        """Raise RuntimeError where the stream is captured, before the runtime ends that."""
        self.query_capture()
        if self.capture == UINT64_MAX:
            raise RuntimeError("the capture of the stream has failed already: end it")
        if self.capture != 0:
            raise RuntimeError(f"{what} cannot be captured in a CUDA graph")
        return 0

    cdef int synchronize(self, str what) except -1:
        self.refuse_capture(what)
        return self.device.check(
            launch(self.device.target, self.device.kernels.synchronize, self.handle), what)

    def clear(self, uintptr_t address, int64_t nbytes):
        """Set the device's memory to zero, in the order of the stream."""
        self.device.check(
            launch(self.device.target, self.device.kernels.fill, <void*>address, 0, nbytes,
                   self.handle),
            "clearing results")

    cdef bint wait_for(self, Stream other) except -1:
        """Let what comes on this stream wait for what another one has been given.

        False where there is nothing to order: a graph runs when it is launched, after what the
        stream of its launch has been given.
        """
        cdef Device device = self.device
        cdef void* event = NULL
        if other.handle == self.handle:
            return False
        self.query_capture()
        other.query_capture()
        if self.capture != other.capture:
            if other.capture != 0:
                raise RuntimeError("what a CUDA graph that is being captured writes cannot be used "
                                   "outside of it before its launch")
            return False
        device.check(call(device.target, device.kernels.create_event, &event), ORDERING)
        try:
            device.check(call(device.target, device.kernels.record, event, other.handle), ORDERING)
            device.check(call(device.target, device.kernels.wait, event, self.handle), ORDERING)
        finally:
            call(device.target, device.kernels.destroy_event, event)
        return True

    def __repr__(self):
        return f"<stream {<uintptr_t>self.handle:#x} of {self.device.name}>"


cdef Stream stream_at(Device device, void* handle, object owner=None):
    cdef Stream made = Stream.__new__(Stream)
    made.device, made.owner = device, owner
    # Two names of the same stream, of which one is as good as the other.
    made.handle = NULL if <uintptr_t>handle == 1 else handle
    return made


include "device/memory.pxi"
include "device/lock.pxi"
include "device/calls.pxi"
