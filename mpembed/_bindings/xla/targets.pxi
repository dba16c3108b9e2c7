# The handlers around the calls, and what they say of errors; part of xla.pyx.

cdef list CODES = [
    (MemoryError, kResourceExhausted),
    (RuntimeError, kFailedPrecondition),  # such as StaleStateError
    ((TypeError, ValueError, IndexError, BufferError, ArithmeticError), kInvalidArgument),
    (KeyboardInterrupt, kCancelled),
]


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


cdef int run(int (*body)(Program) except -1, const CallFrame* frame, const Place* place,
             string* message) noexcept:
    try:
        body(new_program(frame, place))
    except BaseException as error:
        return explain(error, message)
    return kOk


cdef int forward_body(const CallFrame* frame, const Place* place,
                      string* message) noexcept with gil:
    return run(forward, frame, place, message)


cdef int backward_body(const CallFrame* frame, const Place* place,
                       string* message) noexcept with gil:
    return run(backward, frame, place, message)


cdef int evaluate_body(const CallFrame* frame, const Place* place,
                       string* message) noexcept with gil:
    return run(evaluate, frame, place, message)


cdef Error* forward_on_host(CallFrame* frame) noexcept nogil:
    return handle(frame, False, forward_body)


cdef Error* forward_on_device(CallFrame* frame) noexcept nogil:
    return handle(frame, True, forward_body)


cdef Error* backward_on_host(CallFrame* frame) noexcept nogil:
    return handle(frame, False, backward_body)


cdef Error* backward_on_device(CallFrame* frame) noexcept nogil:
    return handle(frame, True, backward_body)


cdef Error* evaluate_on_host(CallFrame* frame) noexcept nogil:
    return handle(frame, False, evaluate_body)


cdef Error* evaluate_on_device(CallFrame* frame) noexcept nogil:
    return handle(frame, True, evaluate_body)


cdef const char* KIND = "xla._CUSTOM_CALL_TARGET"  # of capsules, for jax.ffi.register_ffi_target


cdef object capsule(Error* (*handler)(CallFrame*) noexcept nogil):
    return PyCapsule_New(<void*>handler, KIND, NULL)


TARGETS = {  # by JAX's names of the platforms
    "cpu": {
        "mpembed_forward": capsule(forward_on_host),
        "mpembed_backward": capsule(backward_on_host),
        "mpembed_evaluate": capsule(evaluate_on_host),
    },
    "CUDA": {
        "mpembed_forward": capsule(forward_on_device),
        "mpembed_backward": capsule(backward_on_device),
        "mpembed_evaluate": capsule(evaluate_on_device),
    },
}
