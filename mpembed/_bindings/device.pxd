"""Devices, their streams and their memory."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t

from mpembed._bindings.api cimport mpe_backend
from mpembed._bindings.launch cimport Outcome, Target


@cython.final
cdef class Device:
    """One device of a backend."""

    cdef const mpe_backend* kernels
    cdef const mpe_backend* step_kernels  # the same for the step, which borrows by itself
    cdef Target target  # the same with the device's number, as calls want it
    cdef object capsule  # keeps the table's library alive
    cdef readonly str name  # "cpu", "cuda:0"
    cdef readonly int32_t index
    cdef readonly tuple dlpack  # the (device type, device id) of DLPack
    # The CPU: its arrays are NumPy's, and a kernel that returns has done its work.
    cdef readonly bint synchronous
    # What is wrong with a batch or an update is raised in its call; a device's `check` raises it.
    cdef readonly bint raises_at_once
    cdef Stream default_stream  # what `stream=None` means

    cdef int check(self, Outcome outcome, str what) except -1
    cdef int raise_failure(self, Outcome outcome, str what) except -1
    cpdef Stream stream(self, object given)


@cython.final
cdef class Stream:
    """Where the work of a call is queued; the CPU's only one does it at once."""

    cdef readonly Device device
    cdef void* handle
    cdef object owner  # what the caller gave, which keeps the stream from being destroyed; or None
    cdef readonly uint64_t capture  # the number of the one it was in when last asked, or 0

    cdef int query_capture(self) except -1
    cdef int refuse_capture(self, str what) except -1
    cdef int synchronize(self, str what) except -1
    cdef bint wait_for(self, Stream other) except -1


@cython.final
cdef class Memory:
    """A piece of a device's memory, owned."""

    cdef readonly Device device
    cdef void* data
    cdef readonly int64_t nbytes
    cdef int32_t placement  # -1: borrowed in the order of `stream`
    cdef bint traced  # by tracemalloc
    cdef Stream return_stream  # it is given back in this order; None where it is not borrowed
    cdef uint64_t capture  # the graph's whose capture borrowed it, or 0
    cdef Stream written  # the last one that writes it, for all tensors in it; None: the default one
    cdef CallEvents calls  # of the collection whose kernels use it; None: of none
    cdef list readers  # streams outside the library that may still read it, as Streams

    cdef int give_back_on(self, Stream on) except -1
    cdef bint can_be_given_back(self) except -1
    cdef int64_t kept_bytes(self) noexcept
    cdef Stream writer(self)
    cdef void wait_for_use(self) noexcept


@cython.final
cdef class CallLock:
    """The lock of a collection's calls."""

    cdef object __weakref__
    cdef object acquire_lock, release_lock  # of a lock that its thread may take again
    cdef bint torn  # held at a fork by a thread that this process does not have

    cdef bint acquire(self, bint waits) except -1
    cdef int release(self) except -1
    cdef int renew(self) except -1


@cython.final
cdef class CallEvents:
    """The events behind a collection's calls."""

    cdef Device device
    cdef void* last  # behind the last call outside of captures; NULL before the first one
    cdef void* launched  # behind the last launch of a graph; NULL before the first capture

    cdef void wait(self) noexcept


@cython.final
cdef class CallOrder:
    """The calls of one collection, in order."""

    cdef readonly Device device
    cdef readonly Stream last  # the stream of the last call outside of captures
    cdef Stream now  # of the running call
    cdef CallLock lock
    cdef CallEvents events
    cdef Stream graph  # of the last call that was captured; None once that is known to be over
    cdef uint64_t capture  # its number
    cdef public object later  # is called with the stream of the next call outside of captures
    cdef int depth  # calls that run, each inside the one before
    # Of these, those that change rows or open batches, that read in several pieces, and that have
    # arrays half changed.
    cdef int changing, holding, alone
    # What calls raise because one that changes all arrays was interrupted; or None.
    cdef public str half_done

    cpdef Call on_stream(self, object stream, object refuse=?, bint changes=?, bint holds=?)
    cpdef Call on_last_stream(self, object refuse=?, bint changes=?, object first=?, bint holds=?,
                              bint alone=?, bint repairs=?)
    cpdef Call inside(self, object refuse=?, bint alone=?)
    cpdef Call on_last_stream_if_free(self, object refuse=?)
    cdef int start(self, Stream on, object refuse) except -1
    cdef int do_later(self, Stream on) except -1
    cdef int order(self, Stream on) except -1
    cdef int order_in_graph(self, Stream on) except -1
    cdef bint is_captured(self) except -1
    cdef int record(self) except -1


@cython.final
cdef class Call:
    """The context of one call; entering gives its stream."""

    cdef CallOrder calls
    cdef Stream stream  # None: that of the last call
    cdef object refuse  # called with the stream if the call would be captured, to raise; or None
    cdef object first  # called with the stream once the call has its turn; or None
    cdef bint changes  # refused inside another such call
    cdef bint holds  # refuses those inside
    cdef bint alone  # refuses all inside
    cdef bint repairs  # even if something is half done
    cdef bint is_part  # of the call that runs
    cdef bint waits  # for the calls of other threads
    cdef bint locked, begun, has_device  # what is to be undone
    cdef int32_t previous  # the thread's device before

    cdef int begin(self) except -1
    cdef int count(self, int by) noexcept
    cdef int end(self) except -1
    cdef int leave(self) except -1


cdef Stream stream_at(Device device, void* handle, object owner=?)
cdef Memory borrow(Stream on, int64_t nbytes)
cdef int give_back_deferred() except -1
cdef Memory allocate(Device device, int64_t nbytes, int32_t placement)
cdef Memory memory_for(Stream on, int64_t nbytes, bint permanent)
cdef int upload(Stream on, void* to, const void* source, int64_t nbytes) except -1
cdef int download(Stream on, void* to, const void* source, int64_t nbytes) except -1
