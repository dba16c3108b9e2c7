# Batches and a group's share of them; part of kernels.pyx.


cdef class Batch:
    """A caller's table-major batch: dtypes and shapes are checked; the CPU checks the offsets here.

    `sources` are the caller's own arrays where the batch was joined out of a dict, else None.
    """

    cdef mpe_batch c
    cdef readonly View indices, offsets, weights
    cdef readonly list sources
    cdef Memory memory
    cdef mpe_error* errors  # of the offsets, then one a group; where the kernels run
    cdef int num_groups
    cdef readonly bint refused  # on the CPU: an index is out of range

    def __init__(self, Stream on, View indices, View offsets, View weights, int num_features,
                 int num_groups, list sources=None):
        cdef mpe_status status
        cdef int32_t previous
        cdef const mpe_backend* kernels = on.device.kernels
        cdef void* stream = on.handle
        self.indices, self.offsets, self.weights = indices, offsets, weights
        self.sources, self.num_groups = sources, num_groups
        self.memory = borrow(on, (1 + num_groups) * sizeof(mpe_error))
        self.errors = <mpe_error*>self.memory.data
        self.c.indices = indices.data
        self.c.offsets = offsets.data
        self.c.weights = <const float*>weights.data if weights is not None else NULL
        self.c.num_indices = indices.extent[0]
        self.c.batch_size = (offsets.extent[0] - 1) // num_features
        self.c.num_features = num_features
        self.c.index_bits = indices.type.bits
        self.c.offset_bits = offsets.type.bits
        previous = on.device.enter()
        with nogil:
            status = kernels.check_offsets(&self.c, stream, self.errors)
        on.device.leave(previous, MPE_OK if status == MPE_ERR_OFFSETS else status,
                        "checking offsets")
        if status == MPE_ERR_OFFSETS:
            raise offsets_error(self.errors, offsets.extent[0] - 1, self.c.num_indices)

    @property
    def batch_size(self):
        return self.c.batch_size

    @property
    def num_indices(self):
        return self.c.num_indices

    def arguments(self):
        """What the caller passed, as views."""
        if self.sources is not None:
            return self.sources
        return [self.indices, self.offsets, self.weights]

    def index_arguments(self):
        """The same without per-sample weights."""
        cdef View v
        return [v for v in self.arguments() if v is not None and v.kind != F32]

    def table_counts(self, Stream on):
        """Return the indices of each table; a device is waited for if there are several."""
        cdef int64_t size = self.c.batch_size
        cdef int t
        if self.c.num_features == 1:
            return [self.c.num_indices]
        ends = host_copy(self.offsets, on)
        if not on.device.synchronous:
            self.raise_offsets(on)
        return [int(ends[(t + 1) * size]) - int(ends[t * size])
                for t in range(self.c.num_features)]

    def found(self, Stream on):
        """Return (table id, position, value, count) of indices out of range, or None.

        ValueError for offsets. A device is waited for.
        """
        cdef vector[mpe_error] errors
        cdef mpe_error one
        if on.device.synchronous and not self.refused:
            return None
        errors.resize(1 + self.num_groups)
        download(on, errors.data(), self.errors, errors.size() * sizeof(mpe_error))
        one = first_error(errors.data(), 1 + self.num_groups)
        if one.status == MPE_ERR_OFFSETS:
            raise offsets_error(&one, self.offsets.extent[0] - 1, self.c.num_indices)
        return None if one.status == MPE_OK else (one.table, one.position, one.value, one.count)

    cdef int raise_offsets(self, Stream on) except -1:
        cdef mpe_error error
        download(on, &error, self.errors, sizeof(mpe_error))
        if error.status == MPE_ERR_OFFSETS:
            raise offsets_error(&error, self.offsets.extent[0] - 1, self.c.num_indices)
        return 0

    cdef int64_t offset(self, int64_t i) noexcept:
        """One of the offsets of a batch in host memory."""
        if self.c.offset_bits == 32:
            return (<const int32_t*>self.c.offsets)[i]
        return (<const int64_t*>self.c.offsets)[i]

    def first_index(self, int table):
        """Return where a table's indices begin in a batch in host memory."""
        return self.offset(table * self.c.batch_size)


cdef extern from "mpembed/error.h" namespace "mpembed" nogil:
    mpe_error first_error(const mpe_error*, int32_t)


cdef object offsets_error(const mpe_error* error, int64_t bags, int64_t num_indices):
    """Return what is wrong with offsets; `bags` is -1 where their batch is no longer known."""
    if error.position == 0 and error.value != 0:
        return ValueError(f"offsets must start at 0, got {error.value}")
    if bags < 0:
        return ValueError(f"offsets must not decrease and must end at the number of indices: "
                          f"offsets[{error.position}] is {error.value}")
    if error.position == bags and error.value != num_indices:
        return ValueError(f"offsets must end at the number of indices, {num_indices}, got "
                          f"{error.value} (as PyTorch's include_last_offset=True)")
    return ValueError(f"offsets must not decrease: offsets[{error.position}] is {error.value}, "
                      f"less than the one before")


cdef inline int64_t part(int64_t* end, int64_t nbytes) noexcept:
    """Append an array to a piece of memory; return where it begins."""
    cdef int64_t begin = end[0]
    end[0] = begin + (nbytes + 63) // 64 * 64
    return begin


cdef class GroupBatch:
    """A group's share of a batch: its keys, and after `dedup` its unique rows and their slots.

    Kernels trust what the arrays hold, so Python sees none of them.
    """

    cdef mpe_lookups c
    cdef mpe_unique u
    cdef Memory memory, weights, unique, slots  # None before they are needed
    cdef int64_t num_bags
    cdef int64_t room  # for unique rows: on the CPU their number
    cdef bint admitted  # the slots are filled and pinned
    cdef int64_t admission  # which of the group's

    def __init__(self, Group group, Batch batch, Stream on):
        cdef int64_t n = 0, end = 0, bags = group.c.num_tables * batch.c.batch_size
        cdef int64_t keys, numbers, offsets, origins, dropped
        cdef int t
        if not on.device.synchronous:
            n = batch.c.num_indices  # how many are this group's is known on the device alone
        elif group.c.num_tables == batch.c.num_features:
            n = batch.c.num_indices
        else:
            for t in range(group.c.num_tables):
                n += (batch.offset((group.tables[t].feature + 1) * batch.c.batch_size)
                      - batch.offset(group.tables[t].feature * batch.c.batch_size))
        if n > MPE_MAX_LOOKUPS or bags > MPE_MAX_LOOKUPS:
            raise ValueError(f"a batch may have at most {MPE_MAX_LOOKUPS} indices and bags a "
                             f"dimension, got {n} indices")
        keys, numbers = part(&end, 8 * n), part(&end, 4 * n)
        offsets, origins = part(&end, 8 * (bags + 1)), part(&end, 8 * group.c.num_tables)
        dropped = part(&end, 8 * group.c.num_tables)
        self.memory = borrow(on, end)
        self.num_bags = bags
        self.c.n = n
        self.c.batch_size = batch.c.batch_size
        self.c.keys = <uint64_t*>at(self.memory, keys)
        self.c.bags = <int32_t*>at(self.memory, numbers)
        self.c.bag_offsets = <int64_t*>at(self.memory, offsets)
        self.c.origins = <int64_t*>at(self.memory, origins)
        self.c.dropped = <int64_t*>at(self.memory, dropped)
        if batch.weights is not None:
            self.weights = borrow(on, 4 * n)
            self.c.weights = <float*>self.weights.data

    def dedup(self, Group group, Stream on):
        """Find the unique rows, once."""
        cdef mpe_status status
        cdef int32_t previous
        cdef Memory memory
        cdef uint64_t limit = group.total_rows
        cdef int64_t n = self.c.n, end = 0, rows, starts, positions
        cdef const mpe_backend* kernels = on.device.kernels
        cdef void* stream = on.handle
        cdef mpe_unique u
        if self.unique is not None:
            return
        rows, starts, positions = part(&end, 8 * n + 8), part(&end, 8 * n + 8), part(&end, 4 * n)
        memory = borrow(on, end)
        u.count = <int64_t*>at(memory, rows)
        u.rows = <uint64_t*>(u.count + 1)
        u.starts = <int64_t*>at(memory, starts)
        u.positions = <int32_t*>at(memory, positions)
        previous = on.device.enter()
        with nogil:
            status = kernels.dedup(self.c.keys, n, limit, &u, stream)
        on.device.leave(previous, status, "dedup")
        self.room = u.count[0] if on.device.synchronous else n
        self.unique, self.u = memory, u

    def reserve(self, Group group, Stream on):
        """Allocate and compute what an admission needs, changing no state."""
        if group.cached:
            self.dedup(group, on)
            self.slots = borrow(on, 4 * self.room)

    def same_rows(self, GroupBatch other):
        """Whether two batches of the CPU ask for the same rows in the same bags.

        Indices that were dropped are equal.
        """
        return (self.c.n == other.c.n and self.c.batch_size == other.c.batch_size
                and memcmp(self.c.keys, other.c.keys, 8 * self.c.n) == 0
                and memcmp(self.c.bag_offsets, other.c.bag_offsets, 8 * (self.num_bags + 1)) == 0)

    def take_weights(self, GroupBatch other):
        """Use another batch's per-sample weights."""
        self.weights = other.weights
        self.c.weights = other.c.weights

    def moved_to(self, Stream on):
        """Give the memory back in the order of another stream, which follows all that used it."""
        cdef Memory m
        for m in (self.memory, self.weights, self.unique, self.slots):
            if m is not None:
                m.moved_to(on)

    @property
    def nbytes(self):
        cdef Memory m
        return sum([m.nbytes for m in (self.memory, self.weights, self.unique, self.slots)
                    if m is not None])
