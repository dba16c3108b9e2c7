# The tables of one dimension and what is done with them; part of kernels.pyx.


cdef class Group:
    """The tables of one dimension and their cache, as the kernels see them.

    `number` is the group's place among the groups of a collection. After the last table and the
    cache comes `upload_descriptors`.
    """

    cdef mpe_group group  # as the kernels see it
    cdef mpe_cache cache
    cdef mpe_table* tables
    cdef StepCounter steps
    cdef Device device
    cdef Memory descriptors  # the tables again, where a device's kernels run
    cdef int capacity, number
    cdef int64_t admissions
    cdef readonly list names
    cdef list arrays  # which the group keeps alive
    cdef readonly int64_t total_rows

    def __cinit__(self, StepCounter steps, int number, int num_tables, int dim, int rounding,
                  uint64_t seed):
        self.tables = <mpe_table*>calloc(num_tables, sizeof(mpe_table))
        if self.tables == NULL:
            raise MemoryError()
        self.capacity, self.number = num_tables, number
        self.steps, self.device = steps, steps.device
        self.group.tables = self.tables
        self.group.step = steps.step
        self.group.dim = dim
        self.group.rounding = rounding
        self.group.seed = seed
        self.names, self.arrays = [], []

    def __dealloc__(self):
        free(self.tables)

    def reseed(self, uint64_t seed):
        """Draw all random bits from this seed from the next call on."""
        self.group.seed = seed

    @property
    def dim(self):
        return self.group.dim

    @property
    def cached(self):
        return self.group.cache != NULL

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
        cdef mpe_table* table = &self.tables[self.group.num_tables - 1]
        table.state = _address(state)
        table.stats = <int64_t*>_address(stats)
        table.precision = precision
        table.table_id = table.feature = table_id
        table.pooling = pooling
        table.state_format = state_format
        table.column = column
        self.arrays.append((rows, state, stats))

    cdef int add_rows(self, str name, int64_t num_rows, void* rows) except -1:
        cdef mpe_table* table
        if self.group.num_tables == self.capacity:
            raise RuntimeError("the group is full")
        table = &self.tables[self.group.num_tables]
        table.rows = <uint8_t*>rows
        table.num_rows = num_rows
        table.base = self.total_rows
        self.total_rows += num_rows
        self.group.num_tables += 1
        self.names.append(name)
        return 0

    def add_rowless_table(self, str name, int64_t below):
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
        self.group.cache = &self.cache
        self.arrays.append((tags, meta, rows, sketch, counters))

    def upload_descriptors(self, Stream on, *, bint permanent=False):
        """Copy the tables' descriptors to the device, for one call or for good (`permanent`)."""
        cdef int64_t nbytes = self.group.num_tables * sizeof(mpe_table)
        if on.device.synchronous:  # its kernels read the host's
            return
        self.descriptors = memory_for(on, nbytes, permanent)
        upload(on, self.descriptors.data, self.tables, nbytes)
        self.group.device_tables = <const mpe_table*>self.descriptors.data

    def init_rows(self, int table, int kind, float a, float b, Stream on):
        """Draw a table's initial rows; the write step is at 0."""
        self.device.check(
            launch(self.device.target, self.device.kernels.init_rows, &self.group, table, kind, a,
                   b, on.handle),
            "initial rows")

    cdef int64_t num_lookups(self, Batch batch) noexcept:
        """How many lookups of a batch are the group's: on the CPU exactly, on a device at most."""
        cdef int64_t n = 0, size = batch.batch.batch_size
        cdef int t, feature
        if not self.device.synchronous or self.group.num_tables == batch.batch.num_features:
            return batch.batch.num_indices
        for t in range(self.group.num_tables):
            feature = self.tables[t].feature
            n += batch.offset((feature + 1) * size) - batch.offset(feature * size)
        return n

    def prepare(self, Batch batch, bint drop, Stream on):
        """Return the group's lookups; what is wrong with them is in the batch."""
        cdef GroupBatch share = GroupBatch(self, batch, on)
        cdef mpe_error* error = batch.errors + 1 + self.number
        cdef Outcome outcome
        outcome = launch(
            self.device.target, self.device.kernels.prepare, &self.group, &batch.batch, drop,
            batch.errors, &share.lookups, on.handle, error)
        if outcome.status == MPE_ERR_INDEX:
            batch.refused = True  # the CPU alone says so
        else:
            self.device.check(outcome, "reading a batch")
        return share

    def discard(self, Batch batch, GroupBatch share, DeviceErrors errors, Stream on):
        """Empty the lookups of a batch in which something is wrong, which goes to `errors`."""
        cdef int count = 1 + batch.num_groups
        self.device.check(
            launch(self.device.target, self.device.kernels.discard, &self.group, &share.lookups,
                   batch.errors, count, errors.found, on.handle),
            "refusing a batch")

    def count(self, GroupBatch share, bint unique, bint accesses, bint dropped, Stream on):
        """Add to the statistics what no other kernel counts."""
        cdef const mpe_unique* rows = &share.unique if unique else NULL
        self.device.check(
            launch(self.device.target, self.device.kernels.count, &self.group, &share.lookups,
                   rows, accesses, dropped, on.handle),
            "counting")

    def admit(self, GroupBatch share, Stream on):
        """Admission of reserved lookups: their unique rows are pinned."""
        self.admissions += 1
        share.admission = self.admissions
        self.device.check(
            launch(self.device.target, self.device.kernels.cache_admit, &self.group, &share.unique,
                   share.lookups.n, share.unique_slots(), on.handle),
            "cache admission")
        share.admitted = True

    def refresh(self, GroupBatch share, CallWorkspace workspace, Stream on):
        """Find the slots of admitted rows as they are now; rows not cached are looked up again."""
        cdef int32_t* slots = share.unique_slots()
        # On a device launches of graphs admit rows too, which nobody counts here.
        if self.device.synchronous and share.admission == self.admissions:
            workspace.unique_slots = slots
            return
        self.device.check(
            launch(self.device.target, self.device.kernels.cache_refresh, &self.group,
                   &share.unique, share.lookups.n, slots, workspace.unique_slots, on.handle),
            "finding cached rows")

    def scatter(self, GroupBatch share, CallWorkspace workspace, Stream on):
        """Spread the unique rows' slots over their lookups."""
        self.device.check(
            launch(self.device.target, self.device.kernels.scatter_slots, &share.unique,
                   workspace.unique_slots, share.lookups.n, workspace.slots, on.handle),
            "spreading slots")

    def locate(self, GroupBatch share, CallWorkspace workspace, Stream on):
        """Find each lookup's slot by probing the cache; no state changes."""
        self.device.check(
            launch(self.device.target, self.device.kernels.cache_locate, &self.cache,
                   share.lookups.keys, share.lookups.n, workspace.slots, on.handle),
            "finding cached rows")

    def release(self, GroupBatch share, Stream on):
        """Take the pins back."""
        if not share.admitted:
            return
        share.admitted = False
        self.device.check(
            launch(self.device.target, self.device.kernels.cache_release, &self.cache,
                   &share.unique, share.lookups.n, share.unique_slots(), on.handle),
            "unpinning")

    def flush(self, Stream on):
        """Write dirty slots back."""
        self.device.check(
            launch(self.device.target, self.device.kernels.cache_flush, &self.group, on.handle),
            "flush")

    def weight_grad(self, GroupBatch share, CallWorkspace workspace, out, Stream on):
        """Write the gradient of the per-sample weights of this group's tables into `out`."""
        cdef float* target = <float*>_address(out)
        self.device.check(
            launch(self.device.target, self.device.kernels.weight_grad, &self.group,
                   &share.lookups, workspace.slots, &workspace.outputs, target, on.handle),
            "weight gradient")

    def update(self, GroupBatch share, CallWorkspace workspace, tuple optimizer,
               DeviceErrors errors, Stream on):
        """Fused update; rows that would not be finite are left out and go to `errors`."""
        cdef mpe_optimizer settings
        cdef mpe_error* nonfinite = errors.found + 1 + self.number
        (settings.kind, settings.decay_mode, settings.lr, settings.eps,
         settings.weight_decay) = optimizer
        # A graph keeps its kernels' parameters: it reads what may change.
        settings.device_lr = self.steps.lr if on.capture != 0 else NULL
        self.device.check(
            launch(self.device.target, self.device.kernels.update, &self.group, &settings,
                   &share.lookups, &share.unique, workspace.unique_slots, &workspace.outputs,
                   nonfinite, on.handle),
            "update")

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
        self.device.check(
            launch(self.device.target, self.device.kernels.read_rows, &self.group, keys.keys,
                   keys.n, <float*>out.data, on.handle),
            "rows")

    def write_rows(self, Keys keys, View values, Stream on):
        """Set rows (no duplicates) to storable values."""
        self.device.check(
            launch(self.device.target, self.device.kernels.write_rows, &self.group, keys.keys,
                   keys.n, <const float*>values.data, on.handle),
            "set_rows")
