# Batches and a group's share of them; part of kernels.pyx.


cdef class Batch:
    """A caller's table-major batch: dtypes and shapes are checked; the CPU checks the offsets here.

    `sources` are the caller's own arrays where the batch was joined out of a dict, else None.
    """

    cdef mpe_batch batch  # as the kernels see it
    cdef readonly View indices, offsets, weights
    cdef readonly list sources
    cdef Memory memory
    cdef mpe_error* errors  # of the offsets, then one a group; where the kernels run
    cdef int num_groups
    cdef readonly bint refused  # on the CPU: an index is out of range

    def __init__(self, Stream on, View indices, View offsets, View weights, int num_features,
                 int num_groups, list sources=None):
        cdef Outcome outcome
        self.indices, self.offsets, self.weights = indices, offsets, weights
        self.sources, self.num_groups = sources, num_groups
        self.memory = borrow(on, (1 + num_groups) * sizeof(mpe_error))
        self.errors = <mpe_error*>self.memory.data
        self.batch.indices = indices.data
        self.batch.offsets = offsets.data
        self.batch.weights = <const float*>weights.data if weights is not None else NULL
        self.batch.num_indices = indices.extent[0]
        self.batch.batch_size = (offsets.extent[0] - 1) // num_features
        self.batch.num_features = num_features
        self.batch.index_bits = indices.type.bits
        self.batch.offset_bits = offsets.type.bits
        outcome = launch(on.device.target, on.device.kernels.check_offsets, &self.batch, on.handle,
                         self.errors)
        if outcome.status == MPE_ERR_OFFSETS:
            raise offsets_error(self.errors, offsets.extent[0] - 1, self.batch.num_indices)
        on.device.check(outcome, "checking offsets")

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

    def table_counts(self, Stream on):
        """Return the indices of each table; a device is waited for if there are several."""
        cdef int64_t size = self.batch.batch_size
        cdef int t
        if self.batch.num_features == 1:
            return [self.batch.num_indices]
        ends = host_copy(self.offsets, on)
        self.raise_offsets(on)
        return [int(ends[(t + 1) * size]) - int(ends[t * size])
                for t in range(self.batch.num_features)]

    def found(self, Stream on):
        """Return (table id, position, value, count) of indices out of range, or None.

        ValueError for offsets. A device is waited for.
        """
        cdef vector[mpe_error] errors
        cdef mpe_error one
        if on.device.raises_at_once and not self.refused:
            return None  # the kernels have said so
        errors.resize(1 + self.num_groups)
        download(on, errors.data(), self.errors, errors.size() * sizeof(mpe_error))
        one = first_error(errors.data(), 1 + self.num_groups)
        if one.status == MPE_ERR_OFFSETS:
            raise offsets_error(&one, self.offsets.extent[0] - 1, self.batch.num_indices)
        return None if one.status == MPE_OK else (one.table, one.position, one.value, one.count)

    cdef int raise_offsets(self, Stream on) except -1:
        cdef mpe_error error
        download(on, &error, self.errors, sizeof(mpe_error))
        if error.status == MPE_ERR_OFFSETS:
            raise offsets_error(&error, self.offsets.extent[0] - 1, self.batch.num_indices)
        return 0

    cdef int64_t offset(self, int64_t i) noexcept:
        """One of the offsets of a batch in host memory."""
        if self.batch.offset_bits == 32:
            return (<const int32_t*>self.batch.offsets)[i]
        return (<const int64_t*>self.batch.offsets)[i]

    def first_index(self, int table):
        """Return where a table's indices begin in a batch in host memory."""
        return self.offset(table * self.batch.batch_size)


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


cdef inline int64_t reserve_piece(int64_t* end, int64_t nbytes) noexcept:
    """Append an array to the layout of a workspace; return where it begins."""
    cdef int64_t begin = end[0]
    end[0] = begin + (nbytes + 63) // 64 * 64
    return begin


cdef class GroupBatch:
    """A group's share of a batch: its keys, and after `dedup` its unique rows and their slots.

    Kernels trust what the arrays hold, so Python sees none of them.
    """

    cdef mpe_lookups lookups
    cdef mpe_unique unique
    cdef Memory lookup_memory, weight_memory, unique_memory, slot_memory  # None before needed
    cdef int64_t num_bags
    cdef int64_t unique_capacity  # at least as many as the unique rows; on the CPU their number
    cdef bint admitted  # the slots are filled and pinned
    cdef int64_t admission  # which of the group's

    def __init__(self, Group group, Batch batch, Stream on):
        cdef int64_t n = group.num_lookups(batch), end = 0
        cdef int64_t num_tables = group.group.num_tables, bags = num_tables * batch.batch.batch_size
        cdef int64_t keys, bag_numbers, bag_offsets, origins, dropped
        if n > MPE_MAX_LOOKUPS or bags > MPE_MAX_LOOKUPS:
            raise ValueError(f"a batch may have at most {MPE_MAX_LOOKUPS} indices and bags a "
                             f"dimension, got {n} indices")
        keys, bag_numbers = reserve_piece(&end, 8 * n), reserve_piece(&end, 4 * n)
        bag_offsets = reserve_piece(&end, 8 * (bags + 1))
        origins, dropped = reserve_piece(&end, 8 * num_tables), reserve_piece(&end, 8 * num_tables)
        self.lookup_memory = borrow(on, end)
        self.num_bags = bags
        self.lookups.n = n
        self.lookups.batch_size = batch.batch.batch_size
        self.lookups.keys = <uint64_t*>at(self.lookup_memory, keys)
        self.lookups.bags = <int32_t*>at(self.lookup_memory, bag_numbers)
        self.lookups.bag_offsets = <int64_t*>at(self.lookup_memory, bag_offsets)
        self.lookups.origins = <int64_t*>at(self.lookup_memory, origins)
        self.lookups.dropped = <int64_t*>at(self.lookup_memory, dropped)
        if batch.weights is not None:
            self.weight_memory = borrow(on, 4 * n)
            self.lookups.weights = <float*>self.weight_memory.data

    def dedup(self, Group group, Stream on):
        """Find the unique rows, once."""
        cdef Memory memory
        cdef uint64_t limit = group.total_rows
        cdef int64_t n = self.lookups.n, end = 0, rows, starts, positions
        cdef mpe_unique unique
        if self.unique_memory is not None:
            return
        rows, starts = reserve_piece(&end, 8 * n + 8), reserve_piece(&end, 8 * n + 8)
        positions = reserve_piece(&end, 4 * n)
        memory = borrow(on, end)
        unique.count = <int64_t*>at(memory, rows)
        unique.rows = <uint64_t*>(unique.count + 1)
        unique.starts = <int64_t*>at(memory, starts)
        unique.positions = <int32_t*>at(memory, positions)
        on.device.check(
            launch(on.device.target, on.device.kernels.dedup, self.lookups.keys, n, limit, &unique,
                   on.handle),
            "dedup")
        # A device is not waited for: its count is known to be at most this.
        self.unique_capacity = unique.count[0] if on.device.synchronous else n
        self.unique_memory, self.unique = memory, unique

    def reserve(self, Group group, Stream on):
        """Allocate and compute what an admission needs, changing no state."""
        if group.cached:
            self.dedup(group, on)
            self.slot_memory = borrow(on, 4 * self.unique_capacity)

    cdef int32_t* unique_slots(self) noexcept:
        """Return the slots of the unique rows, as the admission found them."""
        return <int32_t*>self.slot_memory.data

    def same_rows(self, GroupBatch other):
        """Whether two batches of the CPU ask for the same rows in the same bags.

        Indices that were dropped are equal.
        """
        return (self.lookups.n == other.lookups.n
                and self.lookups.batch_size == other.lookups.batch_size
                and memcmp(self.lookups.keys, other.lookups.keys, 8 * self.lookups.n) == 0
                and memcmp(self.lookups.bag_offsets, other.lookups.bag_offsets,
                           8 * (self.num_bags + 1)) == 0)

    def use_weights_of(self, GroupBatch other):
        """Use another batch's per-sample weights."""
        self.weight_memory = other.weight_memory
        self.lookups.weights = other.lookups.weights

    cdef list memories(self):
        return [memory for memory in (self.lookup_memory, self.weight_memory, self.unique_memory,
                                      self.slot_memory) if memory is not None]

    def give_back_on(self, Stream on):
        """Give the memory back in the order of another stream, which follows all that used it."""
        cdef Memory memory
        for memory in self.memories():
            memory.give_back_on(on)

    @property
    def nbytes(self):
        cdef Memory memory
        return sum([memory.nbytes for memory in self.memories()])
