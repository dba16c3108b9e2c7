# The order of a collection's calls; part of _device.pyx.


@cython.no_gc_clear
cdef class Calls:
    """The calls of one collection: one after the other, from whatever threads and on whatever
    streams they come.

    A stream waits for the collection's calls on the stream before it, not for other work there.
    """

    def __init__(self, Device device, lock):
        self.device = device
        self.lock = lock
        self.last = device.ordinary
        if device.immediate:
            self.one = new_call(self, device.ordinary)

    def __dealloc__(self):
        cdef int32_t previous
        if self.event != NULL:
            previous = self.device.enter()
            self.device.kernels.destroy_event(self.event)
            self.device.leave(previous, MPE_OK, "")

    cpdef Call on(self, object stream):
        """Return the context of a call on a caller's stream."""
        cdef Stream chosen = self.device.stream(stream)
        return new_call(self, chosen) if self.one is None else self.one

    cpdef Call again(self):
        """Return the context of a call on the stream of the one before."""
        return new_call(self, None) if self.one is None else self.one

    cdef int begin(self, Stream on) except -1:
        cdef mpe_status status = MPE_OK
        if self.depth > 0:
            self.depth += 1
            return 0
        self.previous = self.device.enter()
        try:
            if on is not None and on.handle != self.last.handle:
                if self.event == NULL:  # the arrays were filled on the stream before any call
                    on.follow(self.last.handle)
                else:
                    status = self.device.kernels.wait(self.event, on.handle)
                    self.device.check(status, "ordering streams")
        except BaseException:
            self.device.leave(self.previous, MPE_OK, "")
            raise
        if on is not None:
            self.last = on  # the same stream too: this object may be what keeps it
        self.depth = 1
        return 0

    cdef int end(self) except -1:
        cdef mpe_status status = MPE_OK
        self.depth -= 1
        if self.depth > 0:
            return 0
        if self.event == NULL:
            status = self.device.kernels.create_event(&self.event)
        if status == MPE_OK:
            status = self.device.kernels.record(self.event, self.last.handle)
        return self.device.leave(self.previous, status, "ordering streams")


@cython.freelist(8)
cdef class Call:

    def __enter__(self):
        self.calls.lock.__enter__()
        if self.calls.device.immediate:
            return self.stream
        try:
            self.calls.begin(self.stream)
        except BaseException:
            self.calls.lock.__exit__(None, None, None)
            raise
        return self.calls.last

    def __exit__(self, kind, error, trace):
        try:
            if not self.calls.device.immediate:
                self.calls.end()
        finally:
            self.calls.lock.__exit__(None, None, None)


cdef Call new_call(Calls calls, Stream stream):
    cdef Call made = Call.__new__(Call)
    made.calls, made.stream = calls, stream
    return made
