# What the updates of a collection's tables read; part of kernels.pyx.


cdef class UpdateRules:
    """The tables' parameters, their coefficients and the count of updates, where the kernels run.

    Tables are in the order of the groups, and within a group in its own.
    """

    cdef Device device
    cdef Memory memory
    cdef uint64_t* updates
    cdef mpe_parameters* parameters
    cdef float* coefficients
    cdef vector[mpe_parameters] host  # what `parameters` are, or will be once they are sent
    cdef int count
    cdef readonly bint changed  # since they were sent

    def __init__(self, Stream on, int num_tables, uint64_t updates, *, bint permanent=False):
        cdef int64_t end = 0, parameters, coefficients
        self.device, self.count = on.device, num_tables
        reserve_piece(&end, sizeof(uint64_t))
        parameters = reserve_piece(&end, num_tables * sizeof(mpe_parameters))
        coefficients = reserve_piece(&end, num_tables * MPE_MAX_COEFFICIENTS * sizeof(float))
        self.memory = memory_for(on, end, permanent)
        self.updates = <uint64_t*>self.memory.data
        self.parameters = <mpe_parameters*>at(self.memory, parameters)
        self.coefficients = <float*>at(self.memory, coefficients)
        self.host.resize(num_tables)
        for i in range(num_tables):
            self.host[i].optimizer = -1
        self.changed = True
        self.set_updates(updates, on)

    @property
    def nbytes(self):
        """Bytes in a device's memory."""
        return self.memory.kept_bytes()

    @property
    def address(self):
        """Where the count of updates is, in the device's memory."""
        return <uintptr_t>self.updates

    def set_table(self, int table, int optimizer, int decay_mode, tuple parameters):
        """Train a table like this, once it is sent; without this call a table is frozen."""
        cdef mpe_parameters* one = &self.host[table]
        one.optimizer, one.decay_mode = optimizer, decay_mode
        for i, value in enumerate(parameters):
            one.values[i] = value
        self.changed = True

    def send(self, Stream on):
        """Let the kernels see what has changed."""
        if not self.changed:
            return
        self.changed = False  # before the copy, during which another thread may set a rate
        try:
            upload(on, self.parameters, self.host.data(), self.count * sizeof(mpe_parameters))
        except BaseException:
            self.changed = True
            raise

    def begin(self, Stream on):
        """Begin an update: count it, and compute every table's coefficients."""
        self.device.check(
            call(self.device.target, self.device.kernels.begin_update, <uint64_t*>NULL,
                 self.parameters, self.count, self.updates, self.coefficients, on.handle),
            "beginning an update")

    def set_updates(self, uint64_t updates, Stream on):
        """Continue from a count of updates."""
        upload(on, self.updates, &updates, sizeof(updates))

    def read_updates(self, Stream on):
        """Return the count of updates; a device is waited for."""
        cdef uint64_t updates = 0
        download(on, &updates, self.updates, sizeof(updates))
        return updates
