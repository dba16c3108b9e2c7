# Tables of one dimension and optimizer, and what is done with them; part of kernels.pyx.


cdef inline int32_t output_format(View view) noexcept:
    """Return the format of an array of outputs or gradients, whose type was checked."""
    return (MPE_format_bf16 if view.kind == BF16 else MPE_format_fp16 if view.kind == F16
            else MPE_format_fp32)


cdef inline mpe_outputs matrix(View view) noexcept:
    """Return one matrix for all outputs."""
    cdef mpe_outputs outputs
    outputs.shared.data, outputs.shared.stride = view.data, view.extent[1]
    outputs.tables = NULL
    outputs.format = output_format(view)
    return outputs


cdef mpe_preimages* _preimages(images) except? NULL:
    cdef uintptr_t address = 0 if images is None else images.address
    return <mpe_preimages*>address


# A batch that dies in the same garbage unpins rows in its arrays.
@cython.no_gc_clear
cdef class Group:
    """Tables of one dimension and optimizer and their cache, as the kernels see them.

    `number` is the group's place among the groups of a collection. After the last table, the
    optimizer (none: the tables are frozen) and the cache comes `upload_descriptors`.
    """

    cdef mpe_group group  # as the kernels see it
    cdef mpe_cache cache
    cdef mpe_optimizer optimizer
    cdef UpdateRules rules
    cdef mpe_table* tables
    cdef StepCounter steps
    cdef Device device
    cdef Memory descriptors  # the tables again, where a device's kernels run
    cdef int capacity, number
    cdef readonly list names
    cdef tuple arrays  # which the group keeps alive; the garbage collector would clear a list
    cdef tuple bitmaps, images  # of what is written; the same
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
        self.names, self.arrays = [], ()

    def __dealloc__(self):
        free(self.tables)

    @property
    def dim(self):
        return self.group.dim

    @property
    def cached(self):
        return self.group.cache != NULL

    @property
    def trained(self):
        return self.group.optimizer != NULL

    @property
    def nbytes(self):
        """Bytes of the device's copy of the descriptors."""
        return 0 if self.descriptors is None else self.descriptors.nbytes

    def add_table(self, str name, int64_t num_rows, rows, int64_t row_stride, *, int precision,
                  int pooling, list states=None, stats=None, noise=None, int table_id=0,
                  int64_t first_row=0, int feature=0, int64_t column=0, bint host=False):
        """Add a table; what has a default says how it lies among other tables and shards.

        Parameters
        ----------
        rows : int
            Address of row 0; rows lie `row_stride` bytes apart.
        states : list of (int, int, int)
            Address, stride in bytes and format of each of the optimizer's states; None: no states.
        stats, noise : array or None
            Its counters and its sums.
        first_row : int
            Number of row 0 in the whole table.
        feature : int
            Its place in a batch.
        column : int
            Where its columns begin in the pooled output.
        host : bool
            Whether its rows lie in the host's memory, beside a device.
        """
        cdef mpe_table* table
        self.add_rows(name, num_rows, <void*><uintptr_t>rows)
        table = &self.tables[self.group.num_tables - 1]
        table.row_stride = row_stride
        for i, (address, stride, state_format) in enumerate(states or ()):
            table.states[i].data = <uint8_t*><uintptr_t>address
            table.states[i].stride, table.states[i].format = stride, state_format
        table.stats, table.noise = <int64_t*>_address(stats), <int64_t*>_address(noise)
        table.precision, table.pooling = precision, pooling
        table.table_id, table.first_row = table_id, first_row
        table.feature, table.column = feature, column
        table.placement = MPE_PLACEMENT_HOST if host else MPE_PLACEMENT_DEVICE
        self.keep_alive(stats, noise)

    def keep_alive(self, *arrays):
        """Keep what the tables' addresses lie in."""
        self.arrays += arrays

    def set_optimizer(self, UpdateRules rules, int first, int kind, int decay_mode):
        """Train the tables; `first` is the first one's place among the tables of the rules."""
        self.rules = rules
        self.optimizer.kind, self.optimizer.decay_mode = kind, decay_mode
        self.optimizer.coefficients = rules.coefficients + first * MPE_MAX_COEFFICIENTS
        self.optimizer.parameters = rules.parameters + first
        self.optimizer.updates = rules.updates
        self.group.optimizer = &self.optimizer

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

    def set_cache(self, tags, meta, rows, values, sketch, counters, int policy):
        """Use these arrays as the cache."""
        self.cache.tags = <uint64_t*>_address(tags)
        self.cache.meta = <uint32_t*>_address(meta)
        self.cache.rows = <float*>_address(rows)
        self.cache.values = <float*>_address(values)
        self.cache.sketch = <uint8_t*>_address(sketch)
        self.cache.counters = <uint64_t*>_address(counters)
        self.cache.num_sets = tags.shape[0]
        self.cache.ways = tags.shape[1]
        self.cache.sketch_width = sketch.shape[1] if sketch is not None else 0
        self.cache.policy = policy
        self.group.cache = &self.cache
        self.keep_alive(tags, meta, rows, values, sketch, counters)

    def upload_descriptors(self, Stream on, *, bint permanent=False):
        """Copy the tables' descriptors to the device, for one call or for good (`permanent`)."""
        cdef int64_t nbytes = self.group.num_tables * sizeof(mpe_table)
        if on.device.synchronous:  # its kernels read the host's
            return
        self.descriptors = memory_for(on, nbytes, permanent)
        upload(on, self.descriptors.data, self.tables, nbytes)
        self.group.device_tables = <const mpe_table*>self.descriptors.data

    def set_changed(self, list tables, cache, Stream on):
        """Let kernels set bits of what they write from now on.

        Parameters
        ----------
        tables : list of (uint32 array or None)
            A bit a row, for each table; None: nothing is marked.
        cache : uint32 array or None
            A bit a slot.
        """
        cdef int64_t nbytes = self.group.num_tables * sizeof(mpe_table)
        for i, bitmap in enumerate(tables):
            self.tables[i].changed = <uint32_t*>_address(bitmap)
        self.cache.changed = <uint32_t*>_address(cache)
        if not on.device.synchronous:  # the same memory: graphs have its address
            upload(on, self.descriptors.data, self.tables, nbytes)
        self.bitmaps = (*tables, cache)

    def set_preimages(self, list tables, cache):
        """Let the CPU's kernels keep what they are about to write, from now on.

        Parameters
        ----------
        tables : list of (Preimages or None)
            For each table; None: nothing is kept.
        cache : Preimages or None
            For the slots.
        """
        for i, images in enumerate(tables):
            self.tables[i].preimages = _preimages(images)
        self.cache.preimages = _preimages(cache)
        self.images = (*tables, cache)

    def init_rows(self, int table, int kind, float a, float b, Stream on):
        """Draw a table's initial rows; the write step is at 0."""
        self.device.check(
            launch(self.device.target, self.device.kernels.init_rows, &self.group, table, kind, a,
                   b, on.handle),
            "initial rows")

    def lookup(self, GroupBatch lookups, View out, Stream on):
        """Write the outputs of a table without a cache."""
        cdef mpe_outputs outputs = matrix(out)
        cdef mpe_lookup_args args
        args.group, args.lookups, args.outputs = &self.group, &lookups.lookups, &outputs
        args.slots = NULL
        self.device.check(
            launch(self.device.target, self.device.kernels.lookup, &args, 1, on.handle), "lookup")

    def update(self, GroupBatch lookups, View grad, DeviceErrors errors, Stream on):
        """Update a table without a cache; rows that would not be finite are left out and go to
        `errors`."""
        cdef mpe_outputs outputs = matrix(grad)
        cdef mpe_gradient gradient
        gradient.lookups, gradient.grad = &lookups.lookups, &outputs
        self.device.check(
            launch(self.device.target, self.device.kernels.update, &self.group, &gradient, 1,
                   &lookups.unique, NULL, <int32_t*>NULL, NULL, errors.found + 1, on.handle),
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
