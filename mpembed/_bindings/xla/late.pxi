# States and tickets in a device's memory, checked once they have come to the host; part of xla.pyx.

cdef extern from *:
    """
    namespace mpembed_xla {

    // Whether a copy has written all digits over the mark, which no digit has.
    static bool landed(const int32_t* digits, int32_t mark) {
      for (int i = 0; i < 4; ++i) {
        if (__atomic_load_n(digits + i, __ATOMIC_ACQUIRE) == mark) return false;
      }
      return true;
    }

    }  // namespace mpembed_xla
    """
    bint landed "mpembed_xla::landed" (const int32_t* digits, int32_t mark) noexcept

cdef enum:
    NUM_SLOTS = 64  # copies under way; where there are more, a call waits for them
    MARK = -1


@cython.final
@cython.no_gc_clear
cdef class LateChecks:
    """What the programs of a collection on a device were given as states and tickets.

    Each is copied to the host behind the work that wrote it, and compared once it is there: a later
    call raises what was wrong. The calls are under the collection's lock.
    """

    cdef Device device
    cdef int64_t number  # the handle's
    cdef Tensor slots  # pinned
    cdef int64_t begun, done  # how many copies
    cdef int64_t counts[NUM_SLOTS]  # what each should count
    cdef bint floats[NUM_SLOTS]  # a state, else a ticket
    cdef Stream last  # of the last copy
    cdef void* event  # recorded behind it
    cdef str found  # what was wrong
    cdef bint raised

    def __init__(self, Device device, int64_t number):
        self.device, self.number = device, number

    def __dealloc__(self):
        cdef Device device = self.device
        if self.event == NULL:
            return
        try:
            self.wait()  # then the slots may go
        except Exception:
            pass
        call(device.target, device.kernels.destroy_event, self.event)

    cdef int32_t* slot(self, int64_t i) noexcept:
        return <int32_t*>self.slots.data + NUM_DIGITS * (i % NUM_SLOTS)

    cdef int watch(self, void* digits, int64_t count, bint is_float, Stream on) except -1:
        """Begin to copy a state or ticket, which should count this."""
        cdef Device device = self.device
        cdef int32_t* slot
        if self.slots is None:
            slots = empty_tensor(device, (NUM_SLOTS, <int>NUM_DIGITS), np.int32, PINNED_HOST)
            device.check(call(device.target, device.kernels.create_event, &self.event),
                         "checking a state")
            self.slots = slots
        if self.begun - self.done == NUM_SLOTS:
            self.wait()
            self.collect(True)
        if self.last is not None and self.last.handle != on.handle:
            device.check(call(device.target, device.kernels.wait, self.event, on.handle),
                         "checking a state")
        slot = self.slot(self.begun)
        for i in range(NUM_DIGITS):
            slot[i] = MARK
        device.check(
            call(device.target, device.kernels.copy, slot, digits, 4 * NUM_DIGITS, on.handle),
            "checking a state")
        self.counts[self.begun % NUM_SLOTS] = count
        self.floats[self.begun % NUM_SLOTS] = is_float
        self.begun += 1
        self.last = on
        return device.check(call(device.target, device.kernels.record, self.event, on.handle),
                            "checking a state")

    cdef int wait(self) except -1:
        """Wait for all copies, by way of the event: the runtime may have ended its stream."""
        cdef Device device = self.device
        if self.begun > self.done:
            device.check(launch(device.target, device.kernels.wait_on_host, self.event),
                         "checking a state")
        return 0

    cdef int collect(self, bint waited) except -1:
        """Compare what has come."""
        while self.done < self.begun and (waited or landed(self.slot(self.done), MARK)):
            self.compare(self.done)
            self.done += 1
        return 0

    cdef int compare(self, int64_t i) except -1:
        cdef int32_t* slot = self.slot(i)
        cdef int64_t number, count
        cdef bint is_float = self.floats[i % NUM_SLOTS]
        number = number_of(<float*>slot) if is_float else number_of(slot)
        count = counted(<float*>slot) if is_float else counted(slot)
        if number == self.number and count == self.counts[i % NUM_SLOTS]:
            return 0
        if self.found is not None:  # the first is told
            return 0
        what = ZERO if number == 0 else USED if number == self.number else (
            f"the state or ticket is not this collection's: {RENEW}")
        self.found = ("a program was run with a wrong state, which a device tells late: its calls "
                      f"up to here were made. {what}")
        return 0

    cdef int check(self, bint waits) except -1:
        """Raise StaleStateError where something was wrong, in each call until `finish`."""
        if waits:
            self.wait()
        self.collect(waits)
        if self.found is not None:
            self.raised = True
            raise StaleStateError(self.found)
        return 0

    cdef int finish(self) except -1:
        """Wait, forget what was wrong, and raise it unless a call has done so."""
        cdef str found
        self.wait()
        self.collect(True)
        found, raised = self.found, self.raised
        self.found, self.raised = None, False
        if found is not None and not raised:
            raise StaleStateError(found)
        return 0
