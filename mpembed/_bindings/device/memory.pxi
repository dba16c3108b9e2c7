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

    cdef int give_back_on(self, Stream on) except -1:
        """Give the memory back in the order of another stream, which already follows the last."""
        self.return_stream = on
        return 0

    cdef bint can_be_given_back(self) except -1:
        """Whether the memory may be given back now.

        What a capture borrowed is its graph's once the capture is over. Nothing else can be given
        back in the order of a stream that is captured: it waits.
        """
        cdef Stream reader
        try:
            self.return_stream.query_capture()
            if self.readers is not None:
                for reader in self.readers:
                    reader.query_capture()
        except RuntimeError:  # the default stream, while another one is captured
            return False
        if self.readers is not None:
            for reader in self.readers:
                if reader.capture != self.capture:
                    return False
        return self.return_stream.capture == self.capture

    cdef int64_t kept_bytes(self) noexcept:
        """Return the bytes that reports count: not those of borrowed workspace."""
        return self.nbytes if self.placement >= 0 else 0

    cdef Stream writer(self):
        return self.device.default_stream if self.written is None else self.written

    def used_by(self, CallOrder calls):
        """Let the memory go back when these calls are done, as their kernels use it."""
        self.calls = calls.events

    cdef void wait_for_use(self) noexcept:
        """Wait for the kernels that use this memory of the host's, which CUDA may not do."""
        cdef Stream filled = self.device.default_stream
        if self.calls is not None:
            self.calls.wait()
            if self.calls.last != NULL:  # which comes after what filled the memory
                return
        try:
            filled.query_capture()
        except RuntimeError:  # while another stream is captured
            return
        if filled.capture == 0:
            launch(self.device.target, self.device.kernels.synchronize, filled.handle)

    def __dealloc__(self):
        cdef Device device = self.device
        cdef Stream reader
        if self.data == NULL:
            return
        if self.traced:
            untrace(TRACE_DOMAIN, <uintptr_t>self.data)
            device.kernels.give_back(self.data, NULL)  # the CPU's work is done
        elif self.placement >= 0:
            if self.placement == MPE_PLACEMENT_HOST:
                if deferred is None or is_finalizing():  # it goes back with the process
                    return
                self.wait_for_use()
            launch(device.target, device.kernels.release, self.data, self.placement)
        elif self.can_be_given_back():
            if self.readers is not None:
                for reader in self.readers:
                    self.return_stream.wait_for(reader)
            call(device.target, device.kernels.give_back, self.data, self.return_stream.handle)
        elif self.capture == 0 and deferred is not None:
            deferred.append(new_owner(self))


cdef list deferred = []  # memory whose owners died while its stream was captured


cdef Memory new_owner(Memory old):
    cdef Memory made = Memory.__new__(Memory)
    made.device, made.data, made.nbytes, made.placement = (
        old.device, old.data, old.nbytes, old.placement)
    made.return_stream, made.readers = old.return_stream, old.readers
    return made


cdef int give_back_deferred() except -1:
    """Give back what can be given back by now."""
    global deferred
    if deferred:
        deferred = []  # the old list's memory dies, or comes here again
    return 0


def fail_borrow(int64_t n):
    """Let the n-th borrowing of workspace from now on find no memory; return what was left.

    For tests; 0 for none.
    """
    global borrows_until_failure
    left, borrows_until_failure = borrows_until_failure, n
    return left


cdef Memory borrow(Stream on, int64_t nbytes):
    """Return memory in the order of a stream; what tracemalloc counts on the CPU."""
    cdef Device device = on.device
    cdef Memory made = Memory.__new__(Memory)
    cdef Outcome outcome
    if borrow_fails():
        raise MemoryError("fail_borrow")
    made.device, made.nbytes, made.placement, made.return_stream = device, nbytes, -1, on
    give_back_deferred()
    on.query_capture()
    made.capture = on.capture
    outcome = call(device.target, device.kernels.borrow, nbytes, on.handle, &made.data)
    if outcome.status != MPE_OK:
        device.check(outcome, f"borrowing {nbytes} bytes of workspace")
    if device.synchronous:  # the host's own memory
        trace(TRACE_DOMAIN, <uintptr_t>made.data, nbytes)
        made.traced = True
    return made


cdef Memory allocate(Device device, int64_t nbytes, int32_t placement):
    """Return memory that stays until its owner dies."""
    cdef Memory made = Memory.__new__(Memory)
    made.device, made.nbytes, made.placement = device, nbytes, placement
    device.check(
        launch(device.target, device.kernels.allocate, nbytes, placement, &made.data),
        f"allocating {nbytes} bytes")
    return made


cdef Memory memory_for(Stream on, int64_t nbytes, bint permanent):
    """Return memory for as long as a collection (`permanent`) or for one call.

    The CPU's is workspace either way, which no report counts.
    """
    if permanent and not on.device.synchronous:
        return allocate(on.device, nbytes, MPE_PLACEMENT_DEVICE)
    return borrow(on, nbytes)


cdef int upload(Stream on, void* to, const void* source, int64_t nbytes) except -1:
    """Queue a copy from the host, whose memory may be used again at return."""
    cdef Device device = on.device
    cdef Outcome outcome
    on.refuse_capture("copying from the host")  # a launch would read the host's memory again
    if device.synchronous:  # a few bytes, copied before another thread would run
        outcome = call(device.target, device.kernels.copy, to, source, nbytes, on.handle)
    else:
        outcome = launch(device.target, device.kernels.copy, to, source, nbytes, on.handle)
    return device.check(outcome, "copying to the device")


cdef int download(Stream on, void* to, const void* source, int64_t nbytes) except -1:
    """Copy to the host and wait for it."""
    cdef Device device = on.device
    on.refuse_capture("copying to the host")
    return device.check(
        launch(device.target, copy_and_wait, device.kernels, to, source, nbytes, on.handle),
        "copying from the device")
