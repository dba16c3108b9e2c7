"""What programs that XLA has compiled call: a collection's forward and backward, on the CPU.

`mpembed.jax` registers `TARGETS`. A program names a collection by its handle's number, which its
arguments hold: no pointer is compiled into it. The runtime calls a handler on a thread of its own,
or on the one that runs the program, which has released the GIL. The handler takes it and makes the
collection's call, with its checks, its lock and its errors.
"""

import os
import secrets
import weakref

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_SetInterrupt
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t
from libcpp.string cimport string

import numpy as np

from mpembed._bindings.device cimport CallLock, CallOrder

cnp.import_array()

cdef extern from "mpembed/_bindings/xla/handler.h" namespace "mpembed_xla" nogil:
    enum DataType:
        kS32, kS64, kF32
    enum Code:
        kOk, kCancelled, kInvalidArgument, kResourceExhausted, kFailedPrecondition, kInternal
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
    ctypedef int (*Body)(const CallFrame*, string*) noexcept
    Error* handle(const CallFrame* frame, Body body) noexcept
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


include "xla/handles.pxi"
include "xla/calls.pxi"
