"""What programs that XLA has compiled call: a collection's forward and backward.

`mpembed.jax` registers `TARGETS`, a set of handlers for each platform. A program for the CPU names
a collection by its handle's number, which its arguments hold: no pointer is compiled into it. One
for a CUDA device, whose arguments the host cannot read at once, names it by an attribute.

The runtime calls a handler on a thread of its own, or on the one that runs the program, which has
released the GIL. The handler takes it and makes the collection's call, with its checks, its lock
and its errors; on a device the call is queued on the program's stream.
"""

import os
import secrets
import weakref

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_SetInterrupt
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libcpp.string cimport string

import numpy as np

from mpembed._bindings.device cimport CallLock, CallOrder, Device, Stream, stream_at, upload
from mpembed._bindings.dlpack_c cimport DLDevice, kDLCPU, kDLCUDA, kDLFloat, kDLInt
from mpembed._bindings.launch cimport call, launch
from mpembed._bindings.tensor cimport Tensor
from mpembed._bindings.view cimport View, finish

from mpembed._bindings.device import PINNED_HOST
from mpembed._bindings.tensor import empty as empty_tensor

cnp.import_array()

cdef extern from "mpembed/_bindings/xla/handler.h" namespace "mpembed_xla" nogil:
    enum DataType:
        kS32, kS64, kF32
    enum Code:
        kOk, kCancelled, kInvalidArgument, kResourceExhausted, kFailedPrecondition, kInternal
    int kHost
    struct Error:
        pass
    struct Buffer:
        int type
        void* data
        int64_t rank
        int64_t* dims
    struct Values:
        int64_t size
        void** values
    struct CallFrame:
        Values arguments
        Values results
    struct Place:
        int32_t device
        void* stream
    ctypedef int (*Body)(const CallFrame*, const Place*, string*) noexcept
    Error* handle(const CallFrame* frame, bint on_device, Body body) noexcept
    int64_t number_attribute(const CallFrame* frame, const char* name) noexcept
    void c_stop "mpembed_xla::stop" () noexcept
    void none_runs "mpembed_xla::none_runs" () noexcept

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void*) except -1, void* argument)

cdef int64_t DIGIT = 1 << 24  # float32 holds whole numbers below it
cdef enum:
    NUM_DIGITS = 4  # of a state or a ticket: two of the handle's number, two of what it counts
DIGITS = NUM_DIGITS

cdef str RENEW = "take a new state of the collection with state()"


def stop():
    """Wait for the handlers that run, and let no other begin: the interpreter ends."""
    with nogil:
        c_stop()


# The threads of the handlers that ran at a fork are not in the child.
os.register_at_fork(after_in_child=lambda: none_runs())


include "xla/digits.pxi"
include "xla/late.pxi"
include "xla/handles.pxi"
include "xla/program.pxi"
include "xla/calls.pxi"
include "xla/targets.pxi"
