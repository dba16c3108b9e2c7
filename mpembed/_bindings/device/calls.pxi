# The order of a collection's calls; part of device.pyx.


@cython.no_gc_clear
cdef class CallOrder:
    """The calls of one collection: one after the other, from whatever threads and on whatever
    streams they come.

    A stream waits for the collection's calls on the stream before it, not for other work there.

    Calls on a stream that is being captured become part of a graph. Each of its launches waits for
    the calls outside of graphs, and these wait for the launches: an event of each side is recorded
    by it alone. Graphs do not wait for each other.
    """

    def __init__(self, Device device, lock):
        self.device = device
        self.lock = lock
        self.last = self.now = device.default_stream

    def __dealloc__(self):
        if self.event != NULL:
            call(self.device.target, self.device.kernels.destroy_event, self.event)
        if self.launched != NULL:
            call(self.device.target, self.device.kernels.destroy_event, self.launched)

    @property
    def was_captured(self):
        """Whether a capture has taken calls."""
        return self.launched != NULL

    cpdef Call on_stream(self, object stream, object refuse=None):
        """Return the context of a call on a caller's stream.

        `refuse` is called with the stream if the call would be captured, before anything is queued.
        """
        return new_call(self, self.device.stream(stream), refuse)

    cpdef Call on_last_stream(self, object refuse=None):
        """Return the context of a call on the capturing stream during a capture, otherwise on the
        last stream."""
        return new_call(self, None, refuse)

    cdef int begin(self, Stream on, object refuse) except -1:
        if self.device.synchronous:  # its calls need no order but the lock's
            return 0
        if self.depth > 0:
            self.depth += 1
            return 0
        self.device.check(enter(self.device.target, &self.previous), "")
        try:
            self.start(on, refuse)
        except BaseException:
            self.device.check(leave(self.device.target, self.previous), "")
            raise
        self.depth = 1
        return 0

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
            if self.event == NULL:  # the arrays were filled on the stream before any call
                on.wait_for(self.last)
            else:
                device.check(call(device.target, device.kernels.wait, self.event, on.handle),
                             ORDERING)
        if self.launched != NULL:
            device.check(call(device.target, device.kernels.wait, self.launched, on.handle),
                         ORDERING)
        return 0

    cdef int order_in_graph(self, Stream on) except -1:
        cdef Device device = self.device
        if self.graph is not None:  # of the same capture
            on.wait_for(self.graph)
            return 0
        if self.launched == NULL:
            device.check(call(device.target, device.kernels.create_event, &self.launched),
                         "ordering a graph")
        if self.event != NULL:
            device.check(
                call(device.target, device.kernels.wait_in_graph, self.event, on.handle),
                "ordering a graph")
        return 0

    cdef bint is_captured(self) except -1:
        """Whether a capture that took calls goes on."""
        if self.graph is not None:
            self.graph.query_capture()
            if self.graph.capture != self.capture:
                self.graph = None
        return self.graph is not None

    cdef int end(self) except -1:
        if self.depth == 0:
            return 0
        self.depth -= 1
        if self.depth > 0:
            return 0
        try:
            self.record()
        except BaseException:
            leave(self.device.target, self.previous)
            raise
        return self.device.check(leave(self.device.target, self.previous), "")

    cdef int record(self) except -1:
        """Let other streams wait for the call that ends."""
        cdef Device device = self.device
        if self.now.capture != 0:
            return device.check(
                call(device.target, device.kernels.record_in_graph, self.launched,
                     self.now.handle),
                "ordering a graph")
        if self.event == NULL:
            device.check(call(device.target, device.kernels.create_event, &self.event), ORDERING)
        return device.check(
            call(device.target, device.kernels.record, self.event, self.last.handle), ORDERING)


@cython.freelist(8)
cdef class Call:

    def __enter__(self):
        self.calls.lock.__enter__()
        try:
            self.calls.begin(self.stream, self.refuse)
        except BaseException:
            self.calls.lock.__exit__(None, None, None)
            raise
        return self.calls.now

    def __exit__(self, kind, error, trace):
        try:
            self.calls.end()
        finally:
            self.calls.lock.__exit__(None, None, None)


cdef Call new_call(CallOrder calls, Stream stream, object refuse):
    cdef Call made = Call.__new__(Call)
    made.calls, made.stream, made.refuse = calls, stream, refuse
    return made
