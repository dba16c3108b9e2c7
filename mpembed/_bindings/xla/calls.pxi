# The calls that programs make; part of xla.pyx.


cdef int forward(Program program) except -1:
    """(State or ticket, indices, offsets, weights if any) -> (output, ticket)."""
    batch = program.batch()
    cdef void* first = program.argument(0)
    cdef Handle used = program.handle(first)
    digits_in(program.result(1), kS32)  # before anything changes
    used.lock.acquire(True)
    try:
        used.check_late()
        if is_state(first):
            program.check_state(used, first)
        else:
            program.check_ticket(used, first)
        out = program.by_name(used, program.result(0))
        made = used.collection.forward(*batch, out=out, ticket=True, stream=program.stream)[1]
        program.write(used, program.result(1), kS32, used.next_ticket(made))
    finally:
        used.lock.release()
    return 0


cdef int backward(Program program) except -1:
    """(Ticket, gradient, ticket, gradient, ...) -> (state, gradients of weights, ...)."""
    cdef int64_t i, results = 1, size = program.frame.arguments.size, pairs = size // 2
    program.require(pairs >= 1 and size == 2 * pairs and program.frame.results.size >= 1)
    cdef Handle used = program.handle(program.argument(0))
    digits_in(program.argument(0), kS32)
    digits_in(program.result(0), kF32)
    grads, outs = [], []
    used.lock.acquire(True)
    try:
        used.check_late()
        for i, ticket in enumerate(program.check_tickets(used, pairs)):
            grads.append((program.by_name(used, program.argument(2 * i + 1)), ticket))
            outs.append(None)
            if ticket.weighted:
                program.require(results < program.frame.results.size)
                outs[i] = program.array(program.result(results))
                results += 1
        program.require(results == program.frame.results.size)
        try:
            used.collection.backward(grads, out=outs, stream=program.stream)
        except BaseException:
            if not all([ticket.open for _, ticket in grads]):  # updated, but for some rows
                used.next_version()
            raise
        used.next_version()
        program.write(used, program.result(0), kF32, used.version)
    finally:
        used.lock.release()
    return 0


cdef int evaluate(Program program) except -1:
    """(State, indices, offsets, weights if any) -> (output, the same state)."""
    batch = program.batch()
    cdef Handle used = program.handle(program.argument(0))
    digits_in(program.result(1), kF32)
    used.lock.acquire(True)
    try:
        used.check_late()
        program.check_state(used, program.argument(0))
        out = program.by_name(used, program.result(0))
        used.collection.forward(*batch, out=out, training=False, stream=program.stream)
        program.write(used, program.result(1), kF32, used.version)
    finally:
        used.lock.release()
    return 0
