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
        self.last = device.default_stream
        if device.synchronous:
            self.one = new_call(self, device.default_stream, None)

    def __dealloc__(self):
        cdef int32_t previous
        if self.event == NULL and self.launched == NULL:
            return
        previous = self.device.enter()
        if self.event != NULL:
            self.device.kernels.destroy_event(self.event)
        if self.launched != NULL:
            self.device.kernels.destroy_event(self.launched)
        self.device.leave(previous, MPE_OK, "")

    @property
    def was_captured(self):
        """Whether a capture has taken calls."""
        return self.launched != NULL

    cpdef Call on_stream(self, object stream, object refuse=None):
        """Return the context of a call on a caller's stream.

        `refuse` is called with the stream if the call would be captured, before anything is queued.
        """
        cdef Stream chosen = self.device.stream(stream)
        return new_call(self, chosen, refuse) if self.one is None else self.one

    cpdef Call on_last_stream(self, object refuse=None):
        """Return the context of a call on the stream of the one before: of those that are captured,
        while that goes on, else of the others."""
        return new_call(self, None, refuse) if self.one is None else self.one

    cdef int begin(self, Stream on, object refuse) except -1:
        if self.depth > 0:
            self.depth += 1
            return 0
        self.previous = self.device.enter()
        try:
            self.start(on, refuse)
        except BaseException:
            self.device.leave(self.previous, MPE_OK, "")
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
                "the collection is being captured in a CUDA graph, of which stream "
                f"{<uintptr_t>on.handle:#x} is no part: pass stream="
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
        cdef mpe_status status = MPE_OK
        if on.handle != self.last.handle:
            if self.event == NULL:  # the arrays were filled on the stream before any call
                on.wait_for(self.last)
            else:
                status = self.device.kernels.wait(self.event, on.handle)
        if status == MPE_OK and self.launched != NULL:
            status = self.device.kernels.wait(self.launched, on.handle)
        return self.device.check(status, "ordering streams")

    cdef int order_in_graph(self, Stream on) except -1:
        cdef mpe_status status = MPE_OK
        if self.graph is not None:  # of the same capture
            on.wait_for(self.graph)
            return 0
        if self.launched == NULL:
            status = self.device.kernels.create_event(&self.launched)
        if status == MPE_OK and self.event != NULL:
            status = self.device.kernels.wait_in_graph(self.event, on.handle)
        return self.device.check(status, "ordering a graph")

    cdef bint is_captured(self) except -1:
        """Whether a capture that took calls goes on."""
        if self.graph is not None:
            self.graph.query_capture()
            if self.graph.capture != self.capture:
                self.graph = None
        return self.graph is not None

    cdef int end(self) except -1:
        cdef mpe_status status = MPE_OK
        self.depth -= 1
        if self.depth > 0:
            return 0
        if self.now.capture != 0:
            status = self.device.kernels.record_in_graph(self.launched, self.now.handle)
            return self.device.leave(self.previous, status, "ordering a graph")
        if self.event == NULL:
            status = self.device.kernels.create_event(&self.event)
        if status == MPE_OK:
            status = self.device.kernels.record(self.event, self.last.handle)
        return self.device.leave(self.previous, status, "ordering streams")


@cython.freelist(8)
cdef class Call:

    def __enter__(self):
        self.calls.lock.__enter__()
        if self.calls.device.synchronous:
            return self.stream
        try:
            self.calls.begin(self.stream, self.refuse)
        except BaseException:
            self.calls.lock.__exit__(None, None, None)
            raise
        return self.calls.now

    def __exit__(self, kind, error, trace):
        try:
            if not self.calls.device.synchronous:
                self.calls.end()
        finally:
            self.calls.lock.__exit__(None, None, None)


cdef Call new_call(CallOrder calls, Stream stream, object refuse):
    cdef Call made = Call.__new__(Call)
    made.calls, made.stream, made.refuse = calls, stream, refuse
    return made
