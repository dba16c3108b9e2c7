# The digits of states and tickets, and what is said of wrong ones; part of xla.pyx.


class StaleStateError(RuntimeError):
    """A state or ticket that is not the latest one."""


cdef str USED = (
    "the state was used already: pass on the state that lookup's gradient, backward or evaluate "
    f"gives; after an error, {RENEW}")
cdef str ZERO = (
    "the state is zero: the loss whose gradient it was does not depend on a lookup of the state "
    f"before; after that, {RENEW}")


ctypedef fused digit:
    float
    int32_t


cdef int64_t joined(digit high, digit low) noexcept:
    """Return a number of two digits; -1 where they are none."""
    if not (0 <= high < DIGIT and 0 <= low < DIGIT):
        return -1
    if <int64_t>high != high or <int64_t>low != low:  # arithmetic was done with it
        return -1
    return <int64_t>high * DIGIT + <int64_t>low


cdef void write_digits(digit* to, int64_t number, int64_t count) noexcept:
    """Write a state or a ticket: the handle's number, and what it counts."""
    to[0], to[1] = <digit>(number // DIGIT), <digit>(number % DIGIT)
    to[2], to[3] = <digit>(count // DIGIT), <digit>(count % DIGIT)


cdef int64_t number_of(digit* digits) noexcept:
    return joined(digits[0], digits[1])


cdef int64_t counted(digit* digits) noexcept:
    return joined(digits[2], digits[3])
