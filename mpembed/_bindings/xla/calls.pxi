# The handlers: a program's buffers become arrays, and a call is made; part of xla.pyx.

cdef list CODES = [
    (MemoryError, kResourceExhausted),
    (RuntimeError, kFailedPrecondition),  # such as StaleStateError
    ((TypeError, ValueError, IndexError, BufferError, ArithmeticError), kInvalidArgument),
    (KeyboardInterrupt, kCancelled),
]


cdef object array_of(void* value):
    """Return an array over a buffer; a program's types and shapes were checked as it was traced."""
    cdef const Buffer* buffer = <const Buffer*>value
    cdef cnp.npy_intp shape[2]
    cdef int kind = (cnp.NPY_INT32 if buffer.type == kS32 else cnp.NPY_INT64 if buffer.type == kS64
                     else cnp.NPY_FLOAT32 if buffer.type == kF32 else cnp.NPY_VOID)
    if kind == cnp.NPY_VOID or not 1 <= buffer.rank <= 2:
        raise TypeError(f"an array of XLA's type {buffer.type} with {buffer.rank} dimensions")
    for i in range(buffer.rank):
        shape[i] = buffer.dims[i]
    return cnp.PyArray_SimpleNewFromData(<int>buffer.rank, shape, kind, buffer.data)


cdef void* digits_in(void* value, int kind) except NULL:
    """Return the digits of a state (kF32) or ticket (kS32)."""
    cdef const Buffer* buffer = <const Buffer*>value
    if buffer.type != kind or buffer.rank != 1 or buffer.dims[0] != NUM_DIGITS:
        raise TypeError("a state or a ticket was expected")
    return buffer.data


cdef float* state_in(void* value) except NULL:
    return <float*>digits_in(value, kF32)


cdef int32_t* ticket_in(void* value) except NULL:
    return <int32_t*>digits_in(value, kS32)


cdef bint is_state(void* value) noexcept:
    return (<const Buffer*>value).type == kF32


cdef int require(bint fits) except -1:
    """Raise TypeError unless a call has as many arguments and results as it should have."""
    if not fits:
        raise TypeError("a program has another number of arguments or results than mpembed.jax's")
    return 0


cdef object by_name(Handle used, void* value):
    """Return an output or its gradient as the collection takes it."""
    return array_of(value) if used.unpooled is None else {used.unpooled: array_of(value)}


cdef tuple batch_of(const CallFrame* frame):
    """Return the indices, offsets and weights or None behind a call's first argument."""
    cdef void** given = frame.arguments.values
    require(3 <= frame.arguments.size <= 4 and frame.results.size == 2)
    weights = array_of(given[3]) if frame.arguments.size > 3 else None
    return array_of(given[1]), array_of(given[2]), weights


cdef int forward(const CallFrame* frame) except -1:
    """(State or ticket, indices, offsets, weights if any) -> (output, ticket)."""
    batch = batch_of(frame)
    cdef void* first = frame.arguments.values[0]
    cdef bint fresh = is_state(first)
    cdef Handle used = find(number_of(state_in(first)) if fresh else number_of(ticket_in(first)))
    cdef int32_t* ticket = ticket_in(frame.results.values[1])
    used.lock.acquire(True)
    try:
        if fresh:
            used.check_version(counted(state_in(first)))
        else:
            used.check_ticket(counted(ticket_in(first)))
        out = by_name(used, frame.results.values[0])
        made = used.collection.forward(*batch, out=out, ticket=True)[1]
        write_digits(ticket, used.number, used.next_ticket(made))
    finally:
        used.lock.release()
    return 0


cdef int backward(const CallFrame* frame) except -1:
    """(Ticket, gradient, ticket, gradient, ...) -> (state, gradients of weights, ...)."""
    cdef void** given = frame.arguments.values
    cdef int64_t i, results = 1, pairs = frame.arguments.size // 2
    require(pairs >= 1 and frame.arguments.size == 2 * pairs and frame.results.size >= 1)
    cdef Handle used = find(number_of(ticket_in(given[0])))
    cdef float* state = state_in(frame.results.values[0])
    grads, outs = [], []
    used.lock.acquire(True)
    try:
        numbers = [counted(ticket_in(given[2 * i])) for i in range(pairs)]
        owners = [number_of(ticket_in(given[2 * i])) for i in range(pairs)]
        if owners != [used.number] * pairs or numbers != list(used.waiting):
            raise StaleStateError(
                "the tickets are not those of all forwards that wait, in their order, or were used "
                f"already: pass all of them to one backward; after an error, {RENEW}")
        for i in range(pairs):
            ticket = used.waiting[numbers[i]]
            grads.append((by_name(used, given[2 * i + 1]), ticket))
            outs.append(None)
            if ticket.weighted:
                require(results < frame.results.size)
                outs[i] = array_of(frame.results.values[results])
                results += 1
        require(results == frame.results.size)
        try:
            used.collection.backward(grads, out=outs)
        except BaseException:
            if not all([ticket.open for _, ticket in grads]):  # updated, but for some rows
                used.next_version()
            raise
        used.next_version()
        write_digits(state, used.number, used.version)
    finally:
        used.lock.release()
    return 0


cdef int evaluate(const CallFrame* frame) except -1:
    """(State, indices, offsets, weights if any) -> (output, the same state)."""
    batch = batch_of(frame)
    cdef float* state = state_in(frame.arguments.values[0])
    cdef float* after = state_in(frame.results.values[1])
    cdef Handle used = find(number_of(state))
    used.lock.acquire(True)
    try:
        used.check_version(counted(state))
        out = by_name(used, frame.results.values[0])
        used.collection.forward(*batch, out=out, training=False)
        write_digits(after, used.number, used.version)
    finally:
        used.lock.release()
    return 0


cdef list ends = []  # what a handler of signals raised to end the program, such as SystemExit


cdef int raise_end(void* _) except -1:
    """Raise the first of `ends`; the main thread runs this once it is out of the program."""
    raise ends.pop(0)


cdef int explain(object error, string* message) noexcept:
    """Return the code of an error, and say it in its own words."""
    cdef bint interrupted = isinstance(error, KeyboardInterrupt)
    for kinds, code in CODES:
        if isinstance(error, kinds):
            break
    else:
        code = kInternal
    try:
        message[0] = f"mpembed: {type(error).__name__}: {error}".encode("utf-8", "replace")
    except BaseException as other:  # a signal's handler, which may run here
        interrupted = interrupted or isinstance(other, KeyboardInterrupt)
        message[0] = b"mpembed: an error that cannot be shown"
    if interrupted:
        PyErr_SetInterrupt()  # the main thread raises it again, once it is out of the program
    elif not isinstance(error, Exception):
        ends.append(error)
        Py_AddPendingCall(raise_end, NULL)
    return code


cdef int run(int (*body)(const CallFrame*) except -1, const CallFrame* frame,
             string* message) noexcept:
    try:
        body(frame)
    except BaseException as error:
        return explain(error, message)
    return kOk


cdef int forward_body(const CallFrame* frame, string* message) noexcept with gil:
    return run(forward, frame, message)


cdef int backward_body(const CallFrame* frame, string* message) noexcept with gil:
    return run(backward, frame, message)


cdef int evaluate_body(const CallFrame* frame, string* message) noexcept with gil:
    return run(evaluate, frame, message)


cdef Error* handle_forward(CallFrame* frame) noexcept nogil:
    return handle(frame, forward_body)


cdef Error* handle_backward(CallFrame* frame) noexcept nogil:
    return handle(frame, backward_body)


cdef Error* handle_evaluate(CallFrame* frame) noexcept nogil:
    return handle(frame, evaluate_body)


cdef const char* KIND = "xla._CUSTOM_CALL_TARGET"  # of capsules, for jax.ffi.register_ffi_target

TARGETS = {
    "mpembed_forward": PyCapsule_New(<void*>handle_forward, KIND, NULL),
    "mpembed_backward": PyCapsule_New(<void*>handle_backward, KIND, NULL),
    "mpembed_evaluate": PyCapsule_New(<void*>handle_evaluate, KIND, NULL),
}
