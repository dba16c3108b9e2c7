# The write step, and what kernels found wrong; part of kernels.pyx.


cdef class StepCounter:
    """The write step of a collection, where the kernels run.

    `taken` is the number of steps; of a device, without those of graphs since `read`.
    """

    cdef Device device
    cdef Memory memory
    cdef uint64_t* step
    cdef uint64_t counted  # a device's, by the host

    def __init__(self, Stream on, uint64_t start, *, bint permanent=False):
        self.device = on.device
        self.memory = memory_for(on, sizeof(uint64_t), permanent)
        self.step = <uint64_t*>self.memory.data
        self.set(start, on)

    @property
    def nbytes(self):
        """Bytes in a device's memory."""
        return self.memory.kept_bytes()

    @property
    def address(self):
        """Where the step is, in the device's memory."""
        return <uintptr_t>self.step

    def set(self, uint64_t step, Stream on):
        """Continue from a step."""
        self.counted = step
        upload(on, self.step, &step, sizeof(step))

    @property
    def taken(self):
        return self.step[0] if self.device.synchronous else self.counted

    def read(self, Stream on):
        """Return the step; a device is waited for."""
        cdef uint64_t step = 0
        download(on, &step, self.step, sizeof(step))
        self.counted = step
        return step


cdef class DeviceErrors:
    """What kernels found wrong: with a batch, and with the updates of each group."""

    cdef Device device
    cdef Memory memory
    cdef mpe_error* found  # of a batch, then of each group's updates; where the kernels run
    cdef int count
    cdef object batch  # what was found and has not been raised yet
    cdef readonly list updates  # the same of updates: (group, count, smallest linear row id)

    def __init__(self, Stream on, int groups, *, bint permanent=False):
        self.device, self.count, self.updates = on.device, 1 + groups, []
        self.memory = memory_for(on, self.count * sizeof(mpe_error), permanent)
        self.found = <mpe_error*>self.memory.data
        self.clear(on)

    @property
    def nbytes(self):
        """Bytes in a device's memory."""
        return self.memory.kept_bytes()

    def clear(self, Stream on):
        """Forget everything."""
        cdef vector[mpe_error] none
        none.resize(self.count)
        for i in range(self.count):
            none[i].position = none[i].value = INT64_MAX
        upload(on, self.found, none.data(), self.count * sizeof(mpe_error))

    cdef bint any(self) noexcept:
        """Whether the CPU's kernels have found anything."""
        for i in range(self.count):
            if self.found[i].status != MPE_OK:
                return True
        return False

    def collect(self, Stream on):
        """Keep what was found until it is raised; return what `pop` has of a batch."""
        if not self.device.raises_at_once or self.any():
            batch, updates = self.pop(on)
            self.updates += updates
            if self.batch is None:
                self.batch = batch
        return self.batch

    def raise_batch(self, error):
        """Raise the error of a batch, and forget it, with no bytecode in between."""
        self.batch = None
        raise error

    def raise_updates(self, error):
        """Raise the error of updates, and forget them, with no bytecode in between."""
        self.updates = []
        raise error

    def forget_updates(self):
        """Forget updates that nobody wants to be told of."""
        self.updates = []

    def pop(self, Stream on):
        """Return and forget what was found: an error of a batch or None, and nonfinite updates.

        The first is an IndexError's (table id, position, value, count) or another exception; the
        others are (group, count, smallest linear row id). A device is waited for.
        """
        cdef vector[mpe_error] found
        cdef mpe_error one
        batch, updates = None, []
        if self.device.raises_at_once and not self.any():  # each backward asks: no copy
            return batch, updates
        found.resize(self.count)
        download(on, found.data(), self.found, self.count * sizeof(mpe_error))
        if found[0].status == MPE_ERR_INDEX:
            batch = found[0].table, found[0].position, found[0].value, found[0].count
        elif found[0].status != MPE_OK:
            batch = offsets_error(&found[0], -1, 0)
        for i in range(1, self.count):
            one = found[i]
            if one.status != MPE_OK:
                updates.append((i - 1, one.count, one.value))
        if batch is not None or updates:
            self.clear(on)
        return batch, updates
