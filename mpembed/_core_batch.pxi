# Batches and a group's share of them; part of _core.pyx.


cdef class Batch:
    """A caller's table-major batch: checked dtypes and shapes, offsets checked here.

    `sources` are the caller's own arrays where the batch was joined out of a dict, else None.
    """

    cdef mpe_batch c
    cdef readonly View indices, offsets, weights
    cdef readonly list sources

    def __init__(self, View indices, View offsets, View weights, int num_features,
                 list sources=None):
        cdef mpe_error error
        cdef mpe_status status
        cdef int64_t bags = offsets.extent[0] - 1
        self.indices, self.offsets, self.weights = indices, offsets, weights
        self.sources = sources
        self.c.indices = indices.data
        self.c.offsets = offsets.data
        self.c.weights = <const float*>weights.data if weights is not None else NULL
        self.c.num_indices = indices.extent[0]
        self.c.batch_size = bags // num_features
        self.c.num_features = num_features
        self.c.index_bits = indices.type.bits
        self.c.offset_bits = offsets.type.bits
        with nogil:
            status = KERNELS.check_offsets(&self.c, NULL, &error)
        if status == MPE_ERR_OFFSETS:
            if error.position == 0 and error.value != 0:
                raise ValueError(f"offsets must start at 0, got {error.value}")
            if error.position == bags and error.value != self.c.num_indices:
                raise ValueError(f"offsets must end at the number of indices, "
                                 f"{self.c.num_indices}, got {error.value} (as PyTorch's "
                                 "include_last_offset=True)")
            raise ValueError(f"offsets must not decrease: offsets[{error.position}] is "
                             f"{error.value}, less than the one before")

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

    def table_counts(self):
        """Indices of each table."""
        cdef int64_t size = self.c.batch_size
        return [self.offset((t + 1) * size) - self.offset(t * size)
                for t in range(self.c.num_features)]

    cdef int64_t offset(self, int64_t i) noexcept:
        if self.c.offset_bits == 32:
            return (<const int32_t*>self.c.offsets)[i]
        return (<const int64_t*>self.c.offsets)[i]


cdef class Lookups:
    """A group's share of a batch: its keys, and after `dedup` its unique rows and their slots.

    Kernels trust what the arrays hold, so Python sees none of them.
    """

    cdef mpe_lookups c
    cdef mpe_unique u
    cdef int64_t unique_count
    cdef object keys, bags, bag_offsets, origins, weights, dropped
    cdef object unique_rows, starts, positions
    cdef object slots  # one a unique row; None before `reserve`
    cdef bint admitted  # the slots are filled and pinned
    cdef readonly tuple bad  # out of range: (position, value, count, table, its rows, its first)

    def __init__(self, Group group, Batch batch):
        cdef int64_t n = 0
        cdef int64_t size = batch.c.batch_size
        cdef int t
        for t in range(group.c.num_tables):
            n += (batch.offset((group.tables[t].feature + 1) * size)
                  - batch.offset(group.tables[t].feature * size))
        if n > INT32_MAX or group.c.num_tables * size > INT32_MAX:
            raise ValueError(f"a batch may have at most {INT32_MAX} indices and bags a dimension, "
                             f"got {n} indices")
        self.keys = np.empty(n, np.uint64)
        self.bags = np.empty(n, np.int32)
        self.bag_offsets = np.empty(group.c.num_tables * size + 1, np.int64)
        self.origins = np.empty(group.c.num_tables, np.int64)
        self.dropped = np.empty(group.c.num_tables, np.int64)
        self.weights = np.empty(n, np.float32) if batch.weights is not None else None
        self.c.n = n
        self.c.batch_size = size
        self.c.keys = <uint64_t*>_data(self.keys)
        self.c.bags = <int32_t*>_data(self.bags)
        self.c.bag_offsets = <int64_t*>_data(self.bag_offsets)
        self.c.origins = <int64_t*>_data(self.origins)
        self.c.dropped = <int64_t*>_data(self.dropped)
        self.c.weights = <float*>_data(self.weights) if self.weights is not None else NULL

    def dedup(self, Group group):
        """Find the unique rows, once."""
        cdef mpe_status status
        cdef uint64_t limit = group.total_rows
        if self.unique_rows is not None:
            return
        rows = np.empty(self.c.n, np.uint64)
        starts = np.empty(self.c.n + 1, np.int64)
        positions = np.empty(self.c.n, np.int32)
        self.u.count = &self.unique_count
        self.u.rows = <uint64_t*>_data(rows)
        self.u.starts = <int64_t*>_data(starts)
        self.u.positions = <int32_t*>_data(positions)
        with nogil:
            status = KERNELS.dedup(self.c.keys, self.c.n, limit, &self.u, NULL)
        _check(status, "dedup")
        self.unique_rows, self.starts, self.positions = rows, starts, positions

    def reserve(self, Group group):
        """Allocate and compute what an admission needs, changing no state."""
        if group.cached:
            self.dedup(group)
            self.slots = np.empty(self.unique_count, np.int32)

    def same_rows(self, Lookups other):
        """Whether two batches ask for the same rows in the same bags; dropped ones are equal."""
        return (np.array_equal(self.keys, other.keys)
                and np.array_equal(self.bag_offsets, other.bag_offsets))

    def take_weights(self, Lookups other):
        """Use another batch's per-sample weights."""
        self.weights = other.weights
        self.c.weights = other.c.weights

    def table_counts(self):
        """Indices of each table of the group."""
        cdef int64_t size = self.c.batch_size
        return [self.c.bag_offsets[(t + 1) * size] - self.c.bag_offsets[t * size]
                for t in range(len(self.origins))]

    @property
    def nbytes(self):
        arrays = (self.keys, self.bags, self.bag_offsets, self.origins, self.dropped, self.weights,
                  self.unique_rows, self.starts, self.positions, self.slots)
        return sum(a.nbytes for a in arrays if a is not None)


cdef class Work:
    """What a call over a group's lookups needs besides them: outputs or gradients, and slots.

    It is allocated before state changes, so that nothing fails for want of memory after that.
    `each`: with room for a slot a lookup, besides one a unique row.
    """

    cdef mpe_outputs outputs
    cdef mpe_matrix* tables
    cdef object views, unique_slots, slots  # the slots are None where the group has no cache

    def __init__(self, Group group, Lookups lookups, views, bint each):
        cdef View view
        self.views = views
        if group.cached:
            self.unique_slots = np.empty(lookups.unique_count, np.int32)
            self.slots = np.empty(lookups.c.n, np.int32) if each else None
        if not isinstance(views, dict):
            view = views
            self.outputs.shared.data = <float*>view.data
            self.outputs.shared.stride = view.extent[1]
            return
        self.tables = <mpe_matrix*>calloc(group.c.num_tables, sizeof(mpe_matrix))
        if self.tables == NULL:
            raise MemoryError()
        self.outputs.tables = self.tables
        for t in range(group.c.num_tables):
            view = views[group.names[t]]
            self.tables[t].data, self.tables[t].stride = <float*>view.data, group.c.dim

    def __dealloc__(self):
        free(self.tables)

    cdef int32_t* unique_at(self) noexcept:
        return <int32_t*>_data(self.unique_slots) if self.unique_slots is not None else NULL

    cdef int32_t* each_at(self) noexcept:
        return <int32_t*>_data(self.slots) if self.slots is not None else NULL
