# A program's call: its buffers, and where they are; part of xla.pyx.


@cython.final
cdef class Program:
    """One call of a program.

    On the CPU its states and tickets are read and written at once. A device's are in its memory:
    what the host's own count does not find is found by `LateChecks`.
    """

    cdef const CallFrame* frame
    cdef DLDevice place
    cdef int64_t ordinal  # of the handle, on a device
    cdef void* stream_handle  # a device's

    cdef int require(self, bint fits) except -1:
        """Raise TypeError unless a call has as many arguments and results as it should have."""
        if not fits:
            raise TypeError(
                "a program has another number of arguments or results than mpembed.jax's")
        return 0

    cdef void* argument(self, int64_t i) noexcept:
        return self.frame.arguments.values[i]

    cdef void* result(self, int64_t i) noexcept:
        return self.frame.results.values[i]

    cdef View array(self, void* value):
        """Return a buffer; a program's types and shapes were checked as it was traced."""
        cdef const Buffer* buffer = <const Buffer*>value
        cdef View made = View.__new__(View)
        if not (buffer.type == kS32 or buffer.type == kS64 or buffer.type == kF32):
            raise TypeError(f"a program's array has XLA's type {buffer.type}, which is none of "
                            "int32, int64 and float32")
        if not 1 <= buffer.rank <= 2:
            raise TypeError(f"a program's array has {buffer.rank} dimensions, 1 or 2 are known")
        made.name = "a program's array"
        made.type.code = kDLFloat if buffer.type == kF32 else kDLInt
        made.type.bits = 64 if buffer.type == kS64 else 32
        made.type.lanes = 1
        made.device, made.data, made.writable = self.place, buffer.data, True
        made.ndim = <int>buffer.rank
        for i in range(made.ndim):
            made.extent[i] = buffer.dims[i]
        made.stride[made.ndim - 1] = 1
        if made.ndim == 2:
            made.stride[0] = made.extent[1]
        finish(made)
        return made

    cdef object by_name(self, Handle used, void* value):
        """Return an output or its gradient as the collection takes it."""
        array = self.array(value)
        return array if used.unpooled is None else {used.unpooled: array}

    cdef tuple batch(self):
        """Return the indices, offsets and weights or None behind a call's first argument."""
        cdef int64_t size = self.frame.arguments.size
        self.require(3 <= size <= 4 and self.frame.results.size == 2)
        weights = self.array(self.argument(3)) if size > 3 else None
        return self.array(self.argument(1)), self.array(self.argument(2)), weights

    # ---- the handle, and what it counts ------------------------------------------------------

    @property
    def stream(self):
        """What the collection takes as `stream`."""
        return None if self.place.device_type == kDLCPU else <uintptr_t>self.stream_handle

    cdef Handle handle(self, void* first):
        """Return the handle that the first argument, a state or ticket, is of."""
        cdef bint is_float = is_state(first)
        cdef void* digits = digits_in(first, kF32 if is_float else kS32)
        if self.place.device_type != kDLCPU:
            return find_on_device(self.ordinal, self.place.device_id)
        return find(number_of(<float*>digits) if is_float else number_of(<int32_t*>digits))

    cdef int64_t count(self, Handle used, void* value, int kind, int64_t latest) except? -2:
        """Return what a state (kF32) or ticket (kS32) counts; -1 where it is another handle's.

        A device's is taken for `latest` until `watch` finds another one.
        """
        cdef void* digits = digits_in(value, kind)
        if self.place.device_type != kDLCPU:
            return latest
        if kind == kF32:
            return counted(<float*>digits) if number_of(<float*>digits) == used.number else -1
        return counted(<int32_t*>digits) if number_of(<int32_t*>digits) == used.number else -1

    cdef int watch(self, Handle used, void* value, int kind, int64_t latest) except -1:
        """Let a device's state or ticket be compared later; the host's own count has been."""
        if self.place.device_type != kDLCPU:
            used.late.watch(digits_in(value, kind), latest, kind == kF32,
                            stream_at(used.device, self.stream_handle))
        return 0

    cdef int check_state(self, Handle used, void* value) except -1:
        """Raise StaleStateError unless a state is the latest, and no forward waits."""
        used.check_version(self.count(used, value, kF32, used.version))
        return self.watch(used, value, kF32, used.version)

    cdef int check_ticket(self, Handle used, void* value) except -1:
        """Raise StaleStateError unless a ticket is that of the latest forward, which waits."""
        used.check_ticket(self.count(used, value, kS32, used.tickets))
        return self.watch(used, value, kS32, used.tickets)

    cdef list check_tickets(self, Handle used, int64_t pairs):
        """Return the forwards that wait; StaleStateError unless these are all their tickets."""
        cdef int64_t i
        numbers = list(used.waiting)
        if len(numbers) != pairs or numbers != [
                self.count(used, self.argument(2 * i), kS32, numbers[i]) for i in range(pairs)]:
            raise StaleStateError(
                "the tickets are not those of all forwards that wait, in their order, or were used "
                f"already: pass all of them to one backward; after an error, {RENEW}")
        for i in range(pairs):
            self.watch(used, self.argument(2 * i), kS32, numbers[i])
        return list(used.waiting.values())

    cdef int write(self, Handle used, void* value, int kind, int64_t count) except -1:
        """Write a state or ticket."""
        cdef int32_t made[NUM_DIGITS]
        cdef void* digits = digits_in(value, kind)
        cdef void* to = digits if self.place.device_type == kDLCPU else <void*>made
        if kind == kF32:
            write_digits(<float*>to, used.number, count)
        else:
            write_digits(<int32_t*>to, used.number, count)
        if to != digits:
            upload(stream_at(used.device, self.stream_handle), digits, to, 4 * NUM_DIGITS)
        return 0


cdef Program new_program(const CallFrame* frame, const Place* place):
    cdef Program made = Program.__new__(Program)
    made.frame = frame
    made.place.device_type, made.place.device_id = kDLCPU, 0
    if place.device != kHost:
        made.place.device_type, made.place.device_id = kDLCUDA, place.device
        made.stream_handle = place.stream
        made.ordinal = number_attribute(frame, "collection")
    return made


cdef void* digits_in(void* value, int kind) except NULL:
    """Return the digits of a state (kF32) or ticket (kS32)."""
    cdef const Buffer* buffer = <const Buffer*>value
    if buffer.type != kind or buffer.rank != 1 or buffer.dims[0] != NUM_DIGITS:
        raise TypeError("a state or a ticket was expected")
    return buffer.data


cdef bint is_state(void* value) noexcept:
    return (<const Buffer*>value).type == kF32
