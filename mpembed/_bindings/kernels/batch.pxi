# Batches, and the lookups of one table; part of kernels.pyx.


cdef class Batch:
    """A caller's table-major batch, whose dtypes and shapes are checked.

    `sources` are the caller's own arrays where the batch was joined out of a dict, else None.
    """

    cdef mpe_batch batch  # as the kernels see it
    cdef readonly View indices, offsets, weights
    cdef readonly list sources

    def __init__(self, View indices, View offsets, View weights, int num_features,
                 list sources=None):
        self.indices, self.offsets, self.weights = indices, offsets, weights
        self.sources = sources
        self.batch.indices = indices.data
        self.batch.offsets = offsets.data
        self.batch.weights = <const float*>weights.data if weights is not None else NULL
        self.batch.num_indices = indices.extent[0]
        self.batch.batch_size = (offsets.extent[0] - 1) // num_features
        self.batch.num_features = num_features
        self.batch.index_bits = indices.type.bits
        self.batch.offset_bits = offsets.type.bits

    @property
    def batch_size(self):
        return self.batch.batch_size

    @property
    def num_indices(self):
        return self.batch.num_indices

    def arguments(self):
        """What the caller passed, as views."""
        if self.sources is not None:
            return self.sources
        return [self.indices, self.offsets, self.weights]

    def index_arguments(self):
        """The same without per-sample weights."""
        cdef View v
        return [v for v in self.arguments() if v is not None and v.kind != F32]

    def table_counts(self, OpenedBatch opened, Stream on):
        """Return the indices of each table; a device is waited for if there are several."""
        cdef vector[int64_t] counts
        if self.batch.num_features == 1:
            return [self.batch.num_indices]
        opened.raise_offsets(self, on)
        counts.resize(self.batch.num_features)
        on.device.check(
            launch(on.device.target, mpe_count_lookups, opened.handle, on.handle, counts.data()),
            "copying from the device")
        return list(counts)

    cdef int64_t offset(self, int64_t i) noexcept:
        """One of the offsets of a batch in host memory."""
        if self.batch.offset_bits == 32:
            return (<const int32_t*>self.batch.offsets)[i]
        return (<const int64_t*>self.batch.offsets)[i]

    def first_index(self, int table):
        """Return where a table's indices begin in a batch in host memory."""
        return self.offset(table * self.batch.batch_size)

    cdef object offsets_error(self, const mpe_error* error):
        return offsets_error(error, self.offsets.extent[0] - 1, self.batch.num_indices)


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


cdef inline int64_t reserve_piece(int64_t* end, int64_t nbytes) noexcept:
    """Append an array to the layout of a workspace; return where it begins."""
    cdef int64_t begin = end[0]
    end[0] = begin + (nbytes + 63) // 64 * 64
    return begin


cdef Memory copy_offsets(mpe_batch* batch, Stream on):
    """Let a batch have offsets of its own, which it returns: the caller's may change meanwhile."""
    cdef int64_t entries = batch.num_features * batch.batch_size + 1
    cdef int64_t nbytes = entries * (batch.offset_bits // 8)
    cdef Memory copied = borrow(on, nbytes)
    on.device.check(
        launch(on.device.target, on.device.kernels.copy, copied.data, batch.offsets, nbytes,
               on.handle),
        "copying offsets")
    batch.offsets = copied.data
    return copied


cdef class GroupBatch:
    """The lookups of a batch of one table: its keys, and after `dedup` its unique rows.

    Kernels trust what the arrays hold, so Python sees none of them. A device is waited for, so that
    what is wrong with the batch is known.
    """

    cdef mpe_lookups lookups
    cdef mpe_unique unique
    cdef Memory lookup_memory, weight_memory, unique_memory  # None before needed
    cdef readonly tuple found  # an index out of range: (table, position, value, count), or None

    def __init__(self, Group group, Batch batch, Stream on):
        cdef int64_t n = batch.batch.num_indices, end = 0, bags = batch.batch.batch_size
        cdef int64_t keys, bag_numbers, bag_offsets, origins, dropped
        cdef Memory memory = borrow(on, sizeof(mpe_error))
        cdef mpe_error* error = <mpe_error*>memory.data
        cdef mpe_batch checked = batch.batch
        cdef Memory offsets
        cdef Outcome outcome
        if n > MPE_MAX_LOOKUPS or bags > MPE_MAX_LOOKUPS:
            raise ValueError(
                f"a batch may have at most {MPE_MAX_LOOKUPS} indices and bags, got {n} indices")
        offsets = copy_offsets(&checked, on)
        if on.device.synchronous:  # a device checks as it reads
            outcome = launch(on.device.target, on.device.kernels.check_offsets, &checked,
                             on.handle, error)
            if outcome.status == MPE_ERR_OFFSETS:
                raise batch.offsets_error(error)
            on.device.check(outcome, "checking offsets")
        keys, bag_numbers = reserve_piece(&end, 8 * n), reserve_piece(&end, 4 * n)
        bag_offsets = reserve_piece(&end, 8 * (bags + 1))
        origins, dropped = reserve_piece(&end, 8), reserve_piece(&end, 8)
        self.lookup_memory = borrow(on, end)
        self.lookups.n = n
        self.lookups.batch_size = bags
        self.lookups.keys = <uint64_t*>at(self.lookup_memory, keys)
        self.lookups.bags = <int32_t*>at(self.lookup_memory, bag_numbers)
        self.lookups.bag_offsets = <int64_t*>at(self.lookup_memory, bag_offsets)
        self.lookups.origins = <int64_t*>at(self.lookup_memory, origins)
        self.lookups.dropped = <int64_t*>at(self.lookup_memory, dropped)
        if batch.weights is not None:
            self.weight_memory = borrow(on, 4 * n)
            self.lookups.weights = <float*>self.weight_memory.data
        outcome = launch(on.device.target, on.device.kernels.prepare, &group.group, &checked, 0,
                         &self.lookups, on.handle, error)
        if outcome.status != MPE_ERR_INDEX:
            on.device.check(outcome, "reading a batch")
        self.read_error(batch, error, on, outcome.status == MPE_ERR_INDEX)

    cdef int read_error(self, Batch batch, mpe_error* error, Stream on, bint refused) except -1:
        cdef mpe_error one
        if on.device.raises_at_once and not refused:
            return 0
        download(on, &one, error, sizeof(mpe_error))
        if one.status == MPE_ERR_OFFSETS:
            raise batch.offsets_error(&one)
        if one.status != MPE_OK:
            self.found = one.table, one.position, one.value, one.count
        return 0

    def dedup(self, Group group, Stream on):
        """Find the unique rows."""
        cdef uint64_t limit = group.total_rows
        cdef int64_t n = self.lookups.n, end = 0, rows, starts, positions
        rows, starts = reserve_piece(&end, 8 * n + 8), reserve_piece(&end, 8 * n + 8)
        positions = reserve_piece(&end, 4 * n)
        self.unique_memory = borrow(on, end)
        self.unique.count = <int64_t*>at(self.unique_memory, rows)
        self.unique.rows = <uint64_t*>(self.unique.count + 1)
        self.unique.starts = <int64_t*>at(self.unique_memory, starts)
        self.unique.positions = <int32_t*>at(self.unique_memory, positions)
        on.device.check(
            launch(on.device.target, on.device.kernels.dedup, self.lookups.keys, n, limit,
                   &self.unique, on.handle),
            "dedup")
