# The tables of one dimension and what is done with them; part of kernels.pyx.


cdef class Group:
    """The tables of one dimension and their cache, as the kernels see them.

    `number` is the group's place among the groups of a collection. After the last table and the
    cache comes `seal`.
    """

    cdef mpe_group c
    cdef mpe_cache cache
    cdef mpe_table* tables
    cdef StepCounter steps
    cdef Device device
    cdef Memory descriptors  # the tables again, where a device's kernels run
    cdef int capacity, number
    cdef int64_t admissions
    cdef readonly list names
    cdef list keep
    cdef readonly int64_t total_rows

    def __cinit__(self, StepCounter steps, int number, int num_tables, int dim, int rounding,
                  uint64_t seed):
        self.tables = <mpe_table*>calloc(num_tables, sizeof(mpe_table))
        if self.tables == NULL:
            raise MemoryError()
        self.capacity, self.number = num_tables, number
        self.steps, self.device = steps, steps.device
        self.c.tables = self.tables
        self.c.step = steps.step
        self.c.dim = dim
        self.c.rounding = rounding
        self.c.seed = seed
        self.names, self.keep = [], []

    def __dealloc__(self):
        free(self.tables)

    def reseed(self, uint64_t seed):
        """Draw all random bits from this seed from the next call on."""
        self.c.seed = seed

    @property
    def dim(self):
        return self.c.dim

    @property
    def cached(self):
        return self.c.cache != NULL

    @property
    def nbytes(self):
        """Bytes of the device's copy of the descriptors."""
        return 0 if self.descriptors is None else self.descriptors.nbytes

    def add_table(self, str name, rows, state, stats, int precision, int table_id, int pooling,
                  int state_format, int64_t column):
        """Add a table (arrays or Views; stats and state may be None).

        `column` is where its columns begin in the pooled output.
        """
        self.add_rows(name, rows.shape[0], _address(rows))
        cdef mpe_table* table = &self.tables[self.c.num_tables - 1]
        table.state = _address(state)
        table.stats = <int64_t*>_address(stats)
        table.precision = precision
        table.table_id = table.feature = table_id
        table.pooling = pooling
        table.state_format = state_format
        table.column = column
        self.keep.append((rows, state, stats))

    cdef int add_rows(self, str name, int64_t num_rows, void* rows) except -1:
        cdef mpe_table* table
        if self.c.num_tables == self.capacity:
            raise RuntimeError("the group is full")
        table = &self.tables[self.c.num_tables]
        table.rows = <uint8_t*>rows
        table.num_rows = num_rows
        table.base = self.total_rows
        self.total_rows += num_rows
        self.c.num_tables += 1
        self.names.append(name)
        return 0

    def add_numbers(self, str name, int64_t below):
        """Add a table without rows, whose row numbers are below a limit."""
        self.add_rows(name, below, NULL)

    def set_cache(self, tags, meta, rows, sketch, counters, int policy):
        """Use these arrays as the cache."""
        self.cache.tags = <uint64_t*>_address(tags)
        self.cache.meta = <uint32_t*>_address(meta)
        self.cache.rows = <float*>_address(rows)
        self.cache.sketch = <uint8_t*>_address(sketch)
        self.cache.counters = <uint64_t*>_address(counters)
        self.cache.num_sets = tags.shape[0]
        self.cache.ways = tags.shape[1]
        self.cache.sketch_width = sketch.shape[1] if sketch is not None else 0
        self.cache.policy = policy
        self.c.cache = &self.cache
        self.keep.append((tags, meta, rows, sketch, counters))

    def seal(self, Stream on, bint lasting):
        """Bring the tables' descriptors to the device, for one call or for good."""
        cdef int64_t nbytes = self.c.num_tables * sizeof(mpe_table)
        if on.device.synchronous:
            return
        if lasting:
            self.descriptors = allocate(on.device, nbytes, MPE_PLACEMENT_DEVICE)
        else:
            self.descriptors = borrow(on, nbytes)
        upload(on, self.descriptors.data, self.tables, nbytes)
        self.c.device_tables = <const mpe_table*>self.descriptors.data

    def init_rows(self, int table, int kind, float a, float b, Stream on):
        """Draw a table's initial rows; the clock is at 0."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.init_rows(&self.c, table, kind, a, b, on.handle)
        self.device.leave(previous, status, "initial rows")

    def prepare(self, Batch batch, bint drop, Stream on):
        """Return the group's lookups; what is wrong with them is in the batch."""
        cdef mpe_status status
        cdef int32_t previous
        cdef GroupBatch lookups = GroupBatch(self, batch, on)
        cdef mpe_error* errors = batch.errors
        cdef mpe_error* error = errors + 1 + self.number
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.prepare(&self.c, &batch.c, drop, errors, &lookups.c,
                                                 on.handle, error)
        if status == MPE_ERR_INDEX:
            batch.refused, status = True, MPE_OK
        self.device.leave(previous, status, "reading a batch")
        return lookups

    def discard(self, Batch batch, GroupBatch lookups, DeviceErrors errors, Stream on):
        """Empty the lookups of a batch in which something is wrong, which goes to `errors`."""
        cdef mpe_status status
        cdef int32_t previous
        cdef int count = 1 + batch.num_groups
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.discard(&self.c, &lookups.c, batch.errors, count,
                                                 errors.found, on.handle)
        self.device.leave(previous, status, "refusing a batch")

    def count(self, GroupBatch lookups, bint unique, bint accesses, bint dropped, Stream on):
        """Add to the statistics what no other kernel counts."""
        cdef mpe_status status
        cdef int32_t previous
        cdef const mpe_unique* u = &lookups.u if unique else NULL
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.count(&self.c, &lookups.c, u, accesses, dropped,
                                               on.handle)
        self.device.leave(previous, status, "counting")

    def admit(self, GroupBatch lookups, Stream on):
        """Admission of reserved lookups: their unique rows are pinned."""
        cdef mpe_status status
        cdef int32_t previous
        cdef int32_t* slots = <int32_t*>lookups.slots.data
        self.admissions += 1
        lookups.admission = self.admissions
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.cache_admit(&self.c, &lookups.u, lookups.c.n, slots,
                                                     on.handle)
        self.device.leave(previous, status, "cache admission")
        lookups.admitted = True

    def refresh(self, GroupBatch lookups, CallWorkspace work, Stream on):
        """Find the slots of admitted rows as they are now; rows not cached are looked up again."""
        cdef mpe_status status
        cdef int32_t previous
        cdef int32_t* slots = <int32_t*>lookups.slots.data
        # Launches of graphs admit rows too, which nobody counts here.
        if self.device.synchronous and lookups.admission == self.admissions:
            work.unique_slots = slots
            return
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.cache_refresh(&self.c, &lookups.u, lookups.c.n, slots,
                                                       work.unique_slots, on.handle)
        self.device.leave(previous, status, "finding cached rows")

    def scatter(self, GroupBatch lookups, CallWorkspace work, Stream on):
        """Spread the unique rows' slots over their lookups."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.scatter_slots(&lookups.u, work.unique_slots, lookups.c.n,
                                                       work.slots, on.handle)
        self.device.leave(previous, status, "spreading slots")

    def locate(self, GroupBatch lookups, CallWorkspace work, Stream on):
        """Find each lookup's slot by probing the cache; no state changes."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.cache_locate(&self.cache, lookups.c.keys, lookups.c.n,
                                                      work.slots, on.handle)
        self.device.leave(previous, status, "finding cached rows")

    def release(self, GroupBatch lookups, Stream on):
        """Take the pins back."""
        cdef mpe_status status
        cdef int32_t previous
        cdef const int32_t* slots
        if not lookups.admitted:
            return
        slots = <const int32_t*>lookups.slots.data
        lookups.admitted = False
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.cache_release(&self.cache, &lookups.u, lookups.c.n, slots,
                                                       on.handle)
        self.device.leave(previous, status, "unpinning")

    def flush(self, Stream on):
        """Write dirty slots back."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.cache_flush(&self.c, on.handle)
        self.device.leave(previous, status, "flush")

    def weight_grad(self, GroupBatch lookups, CallWorkspace work, out, Stream on):
        """Write the gradient of the per-sample weights of this group's tables into `out`."""
        cdef mpe_status status
        cdef int32_t previous
        cdef float* to = <float*>_address(out)
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.weight_grad(&self.c, &lookups.c, work.slots,
                                                     &work.outputs, to, on.handle)
        self.device.leave(previous, status, "weight gradient")

    def update(self, GroupBatch lookups, CallWorkspace work, tuple optimizer,
               DeviceErrors errors, Stream on):
        """Fused update; rows that would not be finite are left out and go to `errors`."""
        cdef mpe_status status
        cdef int32_t previous
        cdef mpe_optimizer o
        cdef mpe_error* nonfinite = errors.found + 1 + self.number
        o.kind, o.decay_mode, o.lr, o.eps, o.weight_decay = optimizer
        # A graph keeps its kernels' parameters: it reads what may change.
        o.device_lr = self.steps.lr if on.capture != 0 else NULL
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.update(&self.c, &o, &lookups.c, &lookups.u,
                                                work.unique_slots, &work.outputs, nonfinite,
                                                on.handle)
        self.device.leave(previous, status, "update")

    def row_of(self, int64_t key):
        """Return the name of a linear row id's table, and its row there."""
        cdef int t = 0
        while key >= self.tables[t].base + self.tables[t].num_rows:
            t += 1
        return self.names[t], key - self.tables[t].base

    def keys(self, int table, ids, Stream on):
        """Linear row ids of a table's rows (int64 ids of the host, in range), for `read_rows`."""
        return Keys(ids.astype(np.uint64) + np.uint64(self.tables[table].base), on)

    def read_rows(self, Keys keys, View out, Stream on):
        """Current values of rows as FP32."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.read_rows(&self.c, keys.keys, keys.n, <float*>out.data,
                                                   on.handle)
        self.device.leave(previous, status, "rows")

    def write_rows(self, Keys keys, View values, Stream on):
        """Set rows (no duplicates) to storable values."""
        cdef mpe_status status
        cdef int32_t previous
        previous = self.device.enter()
        with nogil:
            status = self.device.kernels.write_rows(&self.c, keys.keys, keys.n,
                                                    <const float*>values.data, on.handle)
        self.device.leave(previous, status, "set_rows")


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
    def of(GroupBatch lookups):
        """Return the keys of a batch's lookups."""
        cdef Keys made = Keys.__new__(Keys)
        made.n, made.memory, made.keys = lookups.c.n, lookups.memory, lookups.c.keys
        return made
