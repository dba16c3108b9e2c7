# Handles: what stands for a collection in a compiled program; part of xla.pyx.

cdef object handles = weakref.WeakValueDictionary()  # by their numbers
cdef object ordered = weakref.WeakValueDictionary()  # by their ordinals


@cython.final
cdef class Handle:
    """A collection as programs know it: a number, a version, and the forwards that wait.

    A state is (number, version). It is good for one forward and the backward after it, which makes
    the next version. So a call that is made again, left out or made out of order is found: it
    changes nothing and raises.

    Its lock is that of `calls`, the collection's, which its thread may take again: a version is
    checked and used as one. `detach` is called with the ticket of each forward: no backward that
    is given none shall use it. `unpooled` is the name of the only table, if it is not pooled.

    Programs for a device are compiled with `ordinal`, which is the same in each process that makes
    its handles in the same order: what was compiled before is found again. Their states are checked
    by `late`.
    """

    cdef object __weakref__
    cdef readonly object collection
    cdef readonly int64_t number, ordinal
    cdef Device device
    cdef LateChecks late  # None on the CPU
    cdef object unpooled, detach
    cdef int64_t version, tickets  # how many there were
    cdef dict waiting  # ticket's number -> Ticket, in the order of the forwards
    cdef CallLock lock

    def __init__(self, collection, CallOrder calls, detach, str unpooled=None):
        self.collection, self.detach, self.unpooled = collection, detach, unpooled
        self.waiting, self.lock = {}, calls.lock
        # Of another process's states, which a checkpoint may hold, none is taken for one of these.
        self.number = 1 + secrets.randbelow(DIGIT * DIGIT - 1)
        self.device = calls.device
        if not self.device.synchronous:
            self.late = LateChecks(self.device, self.number)
        self.ordinal = next_ordinal()
        handles[self.number] = ordered[self.ordinal] = self

    def new_state(self):
        """Drop the forwards that wait, make all earlier states stale, and return the next one.

        A device's StaleStateError that no call has raised yet is raised instead.
        """
        self.lock.acquire(True)
        try:
            if self.late is not None:
                self.late.finish()
            for ticket in list(self.waiting.values()):
                ticket.drop()
            self.next_version()
            state = np.empty(NUM_DIGITS, np.float32)
            write_digits(<float*>cnp.PyArray_DATA(state), self.number, self.version)
            return state
        finally:
            self.lock.release()

    def check_state(self, state):
        """Raise StaleStateError unless a state is the latest, and no forward waits."""
        cdef cnp.ndarray digits = np.ascontiguousarray(state, np.float32)
        if digits.size != NUM_DIGITS:
            raise ValueError(f"state must have {<int>NUM_DIGITS} values, got shape {state.shape}")
        self.lock.acquire(True)
        try:
            if number_of(<float*>cnp.PyArray_DATA(digits)) != self.number:
                raise StaleStateError(f"the state is another collection's: {RENEW}")
            if self.late is not None:
                self.late.check(True)
            self.check_version(counted(<float*>cnp.PyArray_DATA(digits)))
        finally:
            self.lock.release()

    cdef int check_late(self) except -1:
        """Raise what was wrong with earlier states of a device."""
        return 0 if self.late is None else self.late.check(False)

    cdef int check_version(self, int64_t version) except -1:
        if version != self.version:
            raise StaleStateError(USED)
        if self.waiting:
            raise StaleStateError(
                "a forward of this state waits for its backward, or was left without one by an "
                f"error: pass its ticket to forward or to backward, or {RENEW}")
        return 0

    cdef int check_ticket(self, int64_t number) except -1:
        """Check that a ticket is the latest one."""
        if number != self.tickets or number not in self.waiting:
            raise StaleStateError(
                "the ticket is not that of the latest forward, or was used already: pass the "
                f"latest to the next forward, and all to one backward; after an error, {RENEW}")
        return 0

    cdef int64_t next_ticket(self, object ticket) except -1:
        self.detach(ticket)
        self.tickets += 1
        self.waiting[self.tickets] = ticket
        return self.tickets

    cdef int next_version(self) except -1:
        self.version += 1
        self.waiting = {}
        return 0


cdef int64_t made = 0  # handles


cdef int64_t next_ordinal() noexcept:
    global made
    made += 1
    return made


cdef Handle find(int64_t number):
    """Return the handle of a number; StaleStateError if it is not, or no more, in the process."""
    found = handles.get(number)
    if number == 0:
        raise StaleStateError(ZERO)
    if found is None:
        raise StaleStateError(
            "the state names no collection of this process: a state is not saved with a model, and "
            "its JitCollection must be alive; take one with state()")
    return found


cdef Handle find_on_device(int64_t ordinal, int32_t device):
    """Return the handle that a program for a CUDA device was compiled with."""
    cdef Handle found = ordered.get(ordinal)
    if found is None:
        raise StaleStateError(
            "the JitCollection that the program was traced with does not live in this process: "
            "keep it as long as the program")
    if found.device.synchronous or found.device.index != device:
        raise ValueError(
            f"the program runs on cuda:{device}, its collection is on {found.device.name}: compile "
            "the program for that device, as under jax.default_device, or make the collection with "
            f"device='cuda:{device}'")
    return found
