# Owned pieces of a device's memory, and copies; part of device.pyx.


# Untracked by the garbage collector, which would clear `device` before the memory goes back.
@cython.no_gc
cdef class Memory:

    def __init__(self):
        raise TypeError("memory is made by a device")

    @property
    def pinned_host(self):
        """Whether this is the host's memory, pinned for the device."""
        return self.placement == MPE_PLACEMENT_HOST

    cdef int moved_to(self, Stream on) except -1:
        """Give the memory back in the order of another stream, which already follows the last."""
        self.home = on
        return 0

    cdef bint may_go_back(self) except -1:
        """Whether the memory may be given back now.

        What a capture borrowed is its graph's once the capture is over. Nothing else can be given
        back in the order of a stream that is captured: it waits.
        """
        try:
            self.home.query_capture()
            for reader in self.readers or ():
                (<Stream>reader).query_capture()
        except RuntimeError:  # the default stream, while another one is captured
            return False
        return self.home.capture == self.capture and all(
            [(<Stream>reader).capture == self.capture for reader in self.readers or ()])

    cdef Stream writer(self):
        return self.device.default_stream if self.written is None else self.written

    def __dealloc__(self):
        cdef int32_t previous = 0
        if self.data == NULL:
            return
        if self.device.synchronous and self.placement < 0:
            untrace(TRACE_DOMAIN, <uintptr_t>self.data)
            self.device.kernels.give_back(self.data, NULL)
            return
        previous = self.device.enter()
        if self.placement >= 0:
            with nogil:
                self.device.kernels.release(self.data, self.placement)
        elif self.may_go_back():
            for reader in self.readers or ():
                self.home.wait_for(<Stream>reader)
            self.device.kernels.give_back(self.data, self.home.handle)
        elif self.capture == 0 and waiting is not None:
            waiting.append(same_memory(self))
        self.device.leave(previous, MPE_OK, "")


cdef list waiting = []  # memory whose owners died while its stream was captured


cdef Memory same_memory(Memory old):
    cdef Memory made = Memory.__new__(Memory)
    made.device, made.data, made.nbytes, made.placement = (
        old.device, old.data, old.nbytes, old.placement)
    made.home, made.readers = old.home, old.readers
    return made


cdef int retry_waiting() except -1:
    """Give back what can go by now."""
    global waiting
    if waiting:
        waiting = []  # the old one's memory dies, or comes here again
    return 0


cdef int64_t failing = 0


def fail_borrow(int64_t n):
    """Let the n-th borrowing of workspace from now on find no memory; return what was left.

    For tests; 0 for none.
    """
    global failing
    left, failing = failing, n
    return left


cdef Memory borrow(Stream on, int64_t nbytes):
    """Return memory in the order of a stream; what tracemalloc counts on the CPU."""
    global failing
    cdef Memory made = Memory.__new__(Memory)
    cdef mpe_status status
    cdef int32_t previous
    if failing > 0:
        failing -= 1
        if failing == 0:
            raise MemoryError("fail_borrow")
    made.device, made.nbytes, made.placement, made.home = on.device, nbytes, -1, on
    if on.device.synchronous:
        if on.device.kernels.borrow(nbytes, NULL, &made.data) != MPE_OK:
            raise MemoryError(f"not enough memory for {nbytes} bytes of workspace")
        trace(TRACE_DOMAIN, <uintptr_t>made.data, nbytes)
        return made
    retry_waiting()
    on.query_capture()
    made.capture = on.capture
    previous = on.device.enter()
    status = on.device.kernels.borrow(nbytes, on.handle, &made.data)
    on.device.leave(previous, status, "borrowing workspace")
    return made


cdef Memory allocate(Device device, int64_t nbytes, int32_t placement):
    """Return memory that stays until its owner dies."""
    cdef Memory made = Memory.__new__(Memory)
    cdef mpe_status status
    cdef int32_t previous = device.enter()
    made.device, made.nbytes, made.placement = device, nbytes, placement
    with nogil:
        status = device.kernels.allocate(nbytes, placement, &made.data)
    device.leave(previous, status, f"allocating {nbytes} bytes")
    return made


cdef int upload(Stream on, void* to, const void* source, int64_t nbytes) except -1:
    """Queue a copy from the host, whose memory may be used again at return."""
    cdef mpe_status status
    cdef int32_t previous
    on.refuse_capture("copying from the host")  # a launch would read the host's memory again
    previous = on.device.enter()
    with nogil:
        status = on.device.kernels.copy(to, source, nbytes, on.handle)
    return on.device.leave(previous, status, "copying to the device")


cdef int download(Stream on, void* to, const void* source, int64_t nbytes) except -1:
    """Copy to the host and wait for it."""
    cdef mpe_status status
    cdef int32_t previous
    on.refuse_capture("copying to the host")
    previous = on.device.enter()
    with nogil:
        status = on.device.kernels.copy(to, source, nbytes, on.handle)
        if status == MPE_OK:
            status = on.device.kernels.synchronize(on.handle)
    return on.device.leave(previous, status, "copying from the device")
