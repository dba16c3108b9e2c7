# The order of a collection's calls; part of device.pyx.


# Untracked by the garbage collector, as memory is that refers to it.
@cython.no_gc
cdef class CallEvents:

    cdef void wait(self) noexcept:
        """Let this thread wait until all calls and launches are done, without the GIL."""
        if self.last != NULL:
            launch(self.device.target, self.device.kernels.wait_on_host, self.last)
        if self.launched != NULL:
            launch(self.device.target, self.device.kernels.wait_on_host, self.launched)

    def __dealloc__(self):
        if self.last != NULL:
            call(self.device.target, self.device.kernels.destroy_event, self.last)
        if self.launched != NULL:
            call(self.device.target, self.device.kernels.destroy_event, self.launched)


@cython.no_gc_clear
cdef class CallOrder:
    """The calls of one collection: one after the other, from whatever threads and on whatever
    streams they come.

    A stream waits for the collection's calls on the stream before it, not for other work there.

    Calls on a stream that is being captured become part of a graph. Each of its launches waits for
    the calls outside of graphs, and these wait for the launches: an event of each side is recorded
    by it alone. Graphs do not wait for each other.
    """

    def __init__(self, Device device):
        self.device = device
        self.lock = CallLock()
        self.events = CallEvents.__new__(CallEvents)
        self.events.device = device
        self.last = self.now = device.default_stream

    @property
    def was_captured(self):
        """Whether a capture has taken calls."""
        return self.events.launched != NULL

    cpdef Call on_stream(self, object stream, object refuse=None, bint changes=False,
                         bint holds=False):
        """Return the context of a call on a caller's stream.

        Parameters
        ----------
        refuse : callable, optional
            Is called with the stream if the call would be captured, before anything is queued.
        changes : bool
            Whether the call changes rows or open batches. Inside of another such call it is
            refused: an argument, a finalizer or a signal handler has made it.
        holds : bool
            Whether the call reads in several pieces: calls inside it that change are refused.
        """
        cdef Call made = new_call(self, self.device.stream(stream), refuse, changes)
        made.holds = holds
        return made

    cpdef Call on_last_stream(self, object refuse=None, bint changes=False, object first=None,
                              bint holds=False, bint alone=False, bint repairs=False):
        """Return the context of a call on the capturing stream during a capture, otherwise on the
        last stream.

        Parameters
        ----------
        refuse, changes, holds
            As in `on_stream`.
        first : callable, optional
            Is called with the stream as the context is entered.
        alone : bool
            Whether code of Python's runs while arrays are half changed: all calls inside are
            refused, those that only read too.
        repairs : bool
            Whether the call is not refused while something is `half_done`.
        """
        cdef Call made = new_call(self, None, refuse, changes)
        made.first, made.holds, made.alone, made.repairs = first, holds, alone, repairs
        return made

    cpdef Call inside(self, object refuse=None, bint alone=False):
        """Return the context of a part of the call that runs; of a call where none does."""
        cdef Call made = new_call(self, None, refuse, False)
        made.is_part, made.alone = True, alone
        return made

    cpdef Call on_last_stream_if_free(self, object refuse=None):
        """Return such a context, which gives None instead of a stream where a call runs."""
        cdef Call made = new_call(self, None, refuse, False)
        made.waits, made.repairs = False, True
        return made

    cdef int start(self, Stream on, object refuse) except -1:
        cdef bint captured = self.is_captured()
        if on is None:
            on = self.graph if captured else self.last
        on.query_capture()
        if on.capture == UINT64_MAX:
            on.refuse_capture("a call")
        if captured and on.capture != self.capture:
            raise RuntimeError(
                "the collection is being captured in a CUDA graph, and stream "
                f"{<uintptr_t>on.handle:#x} is not part of it: pass stream="
                f"{<uintptr_t>self.graph.handle:#x}, or end the capture first")
        if on.capture == 0:
            self.order(on)
            self.last = on  # the same stream too: this object may be what keeps it
            self.do_later(on)
        else:
            if refuse is not None:
                refuse(on)
            self.order_in_graph(on)
            self.graph, self.capture = on, on.capture
        self.now = on
        return 0

    cdef int do_later(self, Stream on) except -1:
        later, self.later = self.later, None
        if later is None:
            return 0
        try:
            later(on)
        except BaseException:
            if self.later is None:
                self.later = later
            raise
        return 0

    cdef int order(self, Stream on) except -1:
        cdef Device device = self.device
        if on.handle != self.last.handle:
            if self.events.last == NULL:  # the arrays were filled on the stream before any call
                on.wait_for(self.last)
            else:
                device.check(call(device.target, device.kernels.wait, self.events.last, on.handle),
                             ORDERING)
        if self.events.launched != NULL:
            device.check(call(device.target, device.kernels.wait, self.events.launched, on.handle),
                         ORDERING)
        return 0

    cdef int order_in_graph(self, Stream on) except -1:
        cdef Device device = self.device
        if self.graph is not None:  # of the same capture
            on.wait_for(self.graph)
            return 0
        if self.events.launched == NULL:
            device.check(call(device.target, device.kernels.create_event, &self.events.launched),
                         "ordering a graph")
        if self.events.last != NULL:
            device.check(
                call(device.target, device.kernels.wait_in_graph, self.events.last, on.handle),
                "ordering a graph")
        return 0

    cdef bint is_captured(self) except -1:
        """Whether a capture that took calls goes on."""
        if self.graph is not None:
            self.graph.query_capture()
            if self.graph.capture != self.capture:
                self.graph = None
        return self.graph is not None

    cdef int record(self) except -1:
        """Let other streams wait for the call that ends."""
        cdef Device device = self.device
        if self.now.capture != 0:
            return device.check(
                call(device.target, device.kernels.record_in_graph, self.events.launched,
                     self.now.handle),
                "ordering a graph")
        if self.events.last == NULL:
            device.check(call(device.target, device.kernels.create_event, &self.events.last),
                         ORDERING)
        return device.check(
            call(device.target, device.kernels.record, self.events.last, self.last.handle),
            ORDERING)


# What a call takes it gives back, whatever is raised between two bytecodes: entering and leaving
# run none but those of `refuse`, `first` and `later`, and a context that was entered but never left
# is left as it dies.
@cython.freelist(8)
@cython.no_gc_clear
cdef class Call:

    def __enter__(self):
        if not self.calls.lock.acquire(self.waits):
            return None
        self.locked = True
        if not self.waits and self.calls.depth > 0:
            self.leave()
            return None
        try:
            self.begin()
        except BaseException:
            self.leave()
            raise
        return self.calls.now

    def __exit__(self, kind, error, trace):
        self.leave()

    def __dealloc__(self):
        if self.locked:
            try:
                self.leave()
            except BaseException:  # the device's, which a later call finds again
                pass

    cdef int begin(self) except -1:
        cdef CallOrder calls = self.calls
        if not self.is_part and (calls.alone > 0 or (
                self.changes and calls.changing + calls.holding > 0)):
            raise RuntimeError(
                "a call of the collection is still running in this thread, and has led to this one "
                "through an argument's method, a finalizer or a signal handler: make this call "
                "once that one has returned")
        if calls.half_done is not None and not self.repairs and not self.is_part:
            raise RuntimeError(calls.half_done)
        if calls.depth == 0 and not calls.device.synchronous:  # the CPU's need no other order
            calls.device.check(enter(calls.device.target, &self.previous), "")
            self.has_device = True
            calls.start(self.stream, self.refuse)
        calls.depth += 1
        self.count(1)
        self.begun = True
        if self.first is not None:
            self.first(calls.now)
        return 0

    cdef int count(self, int by) noexcept:
        self.calls.changing += by * self.changes
        self.calls.holding += by * self.holds
        self.calls.alone += by * self.alone
        return 0

    cdef int leave(self) except -1:
        if not self.locked:
            return 0
        self.locked = False
        try:
            self.end()
        finally:
            self.calls.lock.release()
        return 0

    cdef int end(self) except -1:
        cdef CallOrder calls = self.calls
        cdef bint begun = self.begun
        if begun:
            self.begun = False
            calls.depth -= 1
            self.count(-1)
        if not self.has_device:
            return 0
        try:
            if begun:
                calls.record()
        except BaseException:
            leave(calls.device.target, self.previous)
            raise
        finally:
            self.has_device = False
        return calls.device.check(leave(calls.device.target, self.previous), "")


cdef Call new_call(CallOrder calls, Stream stream, object refuse, bint changes):
    cdef Call made = Call.__new__(Call)
    made.calls, made.stream, made.refuse = calls, stream, refuse
    made.changes, made.waits = changes, True
    return made
