# Row numbers as keys; part of kernels.pyx.


cdef class Keys:
    """Linear row ids where the kernels run."""

    cdef Memory memory
    cdef uint64_t* keys
    cdef int64_t n

    def __init__(self, values, Stream on):
        self.n = len(values)
        self.memory = borrow(on, 8 * self.n)
        self.keys = <uint64_t*>self.memory.data
        upload(on, self.keys, cnp.PyArray_DATA(values), 8 * self.n)

    @staticmethod
    def of(GroupBatch share):
        """Return the keys of a group's lookups."""
        cdef Keys made = Keys.__new__(Keys)
        made.n, made.keys = share.lookups.n, share.lookups.keys
        made.memory = share.lookup_memory
        return made

    def limit(self):
        """Return a number that all are below; keys of the CPU alone."""
        cdef uint64_t most = 0
        cdef int64_t i
        with nogil:
            for i in range(self.n):
                most = max(most, self.keys[i])
        return most + 1
