# Batches and a group's share of them; part of _core.pyx.


cdef class Batch:
    """A caller's table-major batch: checked dtypes and shapes, offsets checked here."""

    cdef mpe_batch c
    cdef readonly View indices, offsets, weights

    def __init__(self, View indices, View offsets, View weights, int num_features):
        cdef mpe_error error
        cdef mpe_status status
        cdef int64_t bags = offsets.extent[0] - 1
        self.indices, self.offsets, self.weights = indices, offsets, weights
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
            if error.position == 0:
                raise ValueError(f"offsets must start at 0, got {error.value}")
            if error.position == bags and error.value != self.c.num_indices:
                raise ValueError(f"offsets must end at the number of indices, "
                                 f"{self.c.num_indices}, got {error.value}")
            raise ValueError(f"offsets must not decrease: offsets[{error.position}] is "
                             f"{error.value}, less than the one before")

    @property
    def batch_size(self):
        return self.c.batch_size

    @property
    def num_indices(self):
        return self.c.num_indices

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
    """A group's share of a batch: its keys, and after `dedup` its unique rows and their slots."""

    cdef mpe_lookups c
    cdef mpe_unique u
    cdef int64_t unique_count
    cdef readonly object keys, bags, bag_offsets, origins, weights, dropped
    cdef readonly object unique_rows, starts, positions
    cdef public object slots  # one an unique row, pinned; None before admission
    cdef readonly list segments  # (first lookup, first index of the caller, count) a table

    def __init__(self, Group group, Batch batch):
        cdef int64_t n = 0, count, first
        cdef int64_t size = batch.c.batch_size
        self.segments = []
        for t in range(group.c.num_tables):
            first = batch.offset(group.tables[t].feature * size)
            count = batch.offset((group.tables[t].feature + 1) * size) - first
            self.segments.append((n, first, count))
            n += count
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
        self.starts = np.empty(self.c.n + 1, np.int64)
        self.positions = np.empty(self.c.n, np.int32)
        self.u.count = &self.unique_count
        self.u.rows = <uint64_t*>_data(rows)
        self.u.starts = <int64_t*>_data(self.starts)
        self.u.positions = <int32_t*>_data(self.positions)
        with nogil:
            status = KERNELS.dedup(self.c.keys, self.c.n, limit, &self.u, NULL)
        _check(status, "dedup")
        self.unique_rows = rows

    def same_rows(self, Lookups other):
        """Whether two batches ask for the same rows in the same bags."""
        return (np.array_equal(self.keys, other.keys)
                and np.array_equal(self.bag_offsets, other.bag_offsets))

    def take_weights(self, Lookups other):
        """Use another batch's per-sample weights."""
        self.weights = other.weights
        self.c.weights = other.c.weights

    @property
    def count(self):
        return self.unique_count

    @property
    def nbytes(self):
        arrays = (self.keys, self.bags, self.bag_offsets, self.origins, self.dropped, self.weights,
                  self.unique_rows, self.starts, self.positions, self.slots)
        return sum(a.nbytes for a in arrays if a is not None)
