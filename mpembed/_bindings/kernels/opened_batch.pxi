# A batch of a collection between its opening and its closing; part of kernels.pyx.


cdef class LatestForward:
    """What the backward and the forward to come have to know of a collection's latest forward."""

    cdef public object ticket  # None before the first training forward
    cdef readonly OpenedBatch implicit  # its batch, where the caller was given no ticket, else None


# Its step and stream are needed until its memory is given back.
@cython.no_gc_clear
cdef class OpenedBatch:
    """A batch between its opening and its closing; it owns its workspace."""

    cdef mpe_open_batch* handle
    cdef Step step
    cdef Stream on  # the last one it was used on
    cdef object __weakref__
    cdef bint listed, looked_up
    cdef readonly bint is_open  # not closed; a failed call may close it
    cdef readonly uint64_t capture  # of a CUDA graph in which it was opened, or 0
    cdef public object arguments  # what a prefetch keeps alive until it is closed, or None

    cdef mpe_batch_info info(self) noexcept:
        cdef mpe_batch_info info
        mpe_describe_batch(self.handle, &info)
        return info

    cdef void note(self) noexcept:
        """Take over what a call of the step has made of the batch."""
        cdef mpe_batch_info info = self.info()
        self.is_open, self.capture = info.open, info.capture
        if not info.admitted:
            self.unlist()
        if not info.open:
            self.arguments = None

    cdef int enlist(self) except -1:
        """Count the batch among the open ones, ahead of an admission, which then needs no memory.

        `note` takes it back if the admission failed.
        """
        cdef object reference
        if self.listed:
            return 0
        reference = PyWeakref_NewRef(self, None)
        if self.capture != 0:
            self.step.captured[<uintptr_t><void*>self] = reference
        self.listed = True
        self.step.pinning[<uintptr_t><void*>self] = reference
        return 0

    cdef void unlist(self) noexcept:
        cdef object key
        if self.listed:
            self.listed = False
            key = <uintptr_t><void*>self
            self.step.pinning.pop(key, None)
            if self.capture != 0:
                self.step.captured.pop(key, None)

    @property
    def nbytes(self):
        """Bytes of workspace."""
        return self.info().bytes

    @property
    def weighted(self):
        """Whether it has per-sample weights."""
        return bool(self.info().weighted)

    @property
    def is_prefetch(self):
        """Whether it is admitted and waits for its forward."""
        return self.listed and not self.looked_up

    def same_rows(self, OpenedBatch other):
        """Whether two batches of the CPU ask for the same rows in the same bags.

        Indices that were dropped are equal.
        """
        return bool(mpe_same_rows(self.handle, other.handle))

    def take_weights(self, OpenedBatch other):
        """Use the per-sample weights of another batch with the same rows."""
        mpe_take_weights(self.handle, other.handle)

    def raise_offsets(self, Batch batch, Stream on):
        """Raise ValueError if a device has found the offsets wrong; it is waited for."""
        cdef mpe_error error
        if on.device.raises_at_once:
            return
        on.refuse_capture("copying to the host")
        on.device.check(
            launch(on.device.target, mpe_batch_error, self.handle, on.handle, &error),
            "copying from the device")
        if error.status == MPE_ERR_OFFSETS:
            raise batch.offsets_error(&error)

    def admit(self, Stream on, list prefetches, object ticket):
        """Admit the rows to the caches, pin them, and add the ticket to the prefetches."""
        cdef Outcome outcome
        self.on = on
        self.enlist()
        prefetches.append(ticket)  # ahead of the admission too
        outcome = launch(on.device.target, mpe_admit, self.handle, on.handle)
        self.note()
        if outcome.status != MPE_OK:
            prefetches.remove(ticket)
        self.step.check(outcome, "cache admission")

    def forward(self, views, Stream on, LatestForward latest, object ticket, bint explicit):
        """Admit unless that was done, write the outputs, and become the latest forward.

        The forward before is closed if it was implicit.
        """
        cdef Results results = Results(self.step, views)
        cdef OpenedBatch replaced = latest.implicit
        cdef mpe_open_batch* old = NULL
        cdef Outcome outcome
        if replaced is not None and replaced.is_open:
            old = replaced.handle
        self.on = on
        self.enlist()
        outcome = launch(on.device.target, mpe_forward, self.handle, old, &results.fields,
                         on.handle)
        self.note()
        if old != NULL:
            replaced.note()
        if outcome.status == MPE_OK:
            self.looked_up = True
            latest.ticket, latest.implicit = ticket, None if explicit else self
        self.step.check(outcome, "a forward")

    def evaluate(self, views, Stream on):
        """Write the outputs, changing no state."""
        cdef Results results = Results(self.step, views)
        self.on = on
        on.device.check(
            launch(on.device.target, mpe_evaluate, self.handle, &results.fields, on.handle),
            "lookup")

    def weight_grad(self, grad, View out, Stream on):
        """Write the gradient of the per-sample weights, changing no state."""
        cdef Results results = Results(self.step, grad)
        on.device.check(
            launch(on.device.target, mpe_weight_grad, self.handle, &results.fields,
                   <float*>out.data, on.handle),
            "the gradient of the weights")

    def close(self, Stream on):
        """Unpin the rows and give the workspace back."""
        self.step.close([self], on)

    def forget(self):
        """Give up the batch of a capture that has ended: its memory is the graph's."""
        mpe_forget(self.handle)
        self.note()

    cdef bint can_be_closed(self) noexcept:
        """Whether the last stream is now in the capture that the batch was opened in."""
        try:
            self.on.query_capture()
        except RuntimeError:  # the default stream, while another one is captured
            return False
        return self.on.capture == self.capture

    cdef bint close_as_last(self, bint pins) noexcept:
        """Close the batch that nobody holds; False where it has to be closed later."""
        cdef CallLock lock
        cdef bint closed
        if not self.can_be_closed():
            if self.capture != 0:
                mpe_forget(self.handle)
            return self.capture != 0
        if not pins:  # memory goes back at any time
            call(self.on.device.target, mpe_close, self.handle, self.on.handle)
            return True
        lock = self.step.calls.lock
        try:
            if not lock.acquire(False):  # of another thread's call, which may use the caches
                return False
        except RuntimeError:  # for good, in a child forked at a bad moment
            return False
        closed = self.step.calls.depth == 0 and self.close_in_order()
        try:
            lock.release()
        except RuntimeError:
            pass
        return closed

    cdef bint close_in_order(self) noexcept:
        """Close the batch behind the latest call; False where a device refuses that."""
        cdef Stream last = self.step.calls.last
        try:
            self.on.wait_for(last)
            call(self.on.device.target, mpe_close, self.handle, self.on.handle)
            last.wait_for(self.on)
        except RuntimeError:
            return not self.info().open
        return True

    cdef void leave_to_heir(self, bint pins) noexcept:
        cdef OpenedBatch heir
        if deferred_batches is None:  # the interpreter ends
            return
        heir = OpenedBatch.__new__(OpenedBatch)
        heir.step, heir.on, heir.looked_up = self.step, self.on, self.looked_up
        heir.is_open, heir.capture, heir.handle = True, self.capture, self.handle
        try:
            if pins:
                heir.enlist()
            deferred_batches.append(heir)
        except MemoryError:  # the rows stay pinned, which is safe
            heir.handle = NULL

    def __dealloc__(self):
        cdef bint pins = self.listed
        self.unlist()
        if self.handle == NULL:
            return
        if self.is_open and not self.close_as_last(pins):
            self.leave_to_heir(pins)
        else:
            mpe_free(self.handle)


cdef list deferred_batches = []  # whose owners died while they could not be closed


cdef list take_deferred():
    """Return them; another thread may do the same, and each is taken once."""
    cdef list taken = []
    while deferred_batches:
        try:
            taken.append(deferred_batches.pop())
        except IndexError:
            break
    return taken


cdef int close_deferred() except -1:
    """Close what can be closed by now."""
    if deferred_batches:
        take_deferred()  # they die, or come here again
    return 0
