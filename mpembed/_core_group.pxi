# The tables of one dimension and what is done with them; part of _core.pyx.


cdef class Group:
    """The tables of one dimension and their cache, as the kernels see them."""

    cdef mpe_group c
    cdef mpe_cache cache
    cdef mpe_table* tables
    cdef uint64_t step
    cdef int capacity
    cdef readonly list names
    cdef list keep
    cdef readonly int64_t total_rows

    def __cinit__(self, int num_tables, int dim, int rounding, uint64_t seed):
        self.tables = <mpe_table*>calloc(num_tables, sizeof(mpe_table))
        if self.tables == NULL:
            raise MemoryError()
        self.capacity = num_tables
        self.c.tables = self.tables
        self.c.step = &self.step
        self.c.dim = dim
        self.c.rounding = rounding
        self.c.seed = seed
        self.names, self.keep = [], []

    def __dealloc__(self):
        free(self.tables)

    @property
    def dim(self):
        return self.c.dim

    @property
    def cached(self):
        return self.c.cache != NULL

    def add_table(self, str name, rows, state, stats, int precision, int table_id, int pooling,
                  int state_format, int64_t column):
        """Add a table (NumPy arrays or Views; stats and state may be None).

        `column` is where its columns begin in the pooled output.
        """
        cdef mpe_table* table
        if self.c.num_tables == self.capacity:
            raise RuntimeError("the group is full")
        table = &self.tables[self.c.num_tables]
        table.rows = <uint8_t*>_address(rows)
        table.state = _address(state)
        table.stats = <int64_t*>_address(stats)
        table.num_rows = rows.shape[0]
        table.base = self.total_rows
        table.precision = precision
        table.table_id = table_id
        table.pooling = pooling
        table.feature = table_id
        table.state_format = state_format
        table.column = column
        self.total_rows += table.num_rows
        self.c.num_tables += 1
        self.names.append(name)
        self.keep.append((rows, state, stats))

    def set_cache(self, tags, meta, rows, sketch, counters, int policy):
        """Use these arrays as the cache."""
        self.cache.tags = <uint64_t*>_data(tags)
        self.cache.meta = <uint32_t*>_data(meta)
        self.cache.rows = <float*>_data(rows)
        self.cache.sketch = <uint8_t*>_data(sketch) if sketch is not None else NULL
        self.cache.counters = <uint64_t*>_data(counters)
        self.cache.num_sets = tags.shape[0]
        self.cache.ways = tags.shape[1]
        self.cache.sketch_width = sketch.shape[1] if sketch is not None else 0
        self.cache.policy = policy
        self.c.cache = &self.cache
        self.keep.append((tags, meta, rows, sketch, counters))

    def init_rows(self, int table, int kind, float a, float b):
        """Draw a table's initial rows (step 0)."""
        cdef mpe_status status
        self.step = 0
        with nogil:
            status = KERNELS.init_rows(&self.c, table, kind, a, b, NULL)
        _check(status, "init_rows")

    def prepare(self, Batch batch, bint drop):
        """Return the group's lookups; unless `drop`, `bad` tells of indices out of range."""
        cdef mpe_error error
        cdef mpe_status status
        cdef Lookups lookups = Lookups(self, batch)
        with nogil:
            status = KERNELS.prepare(&self.c, &batch.c, drop, NULL, &lookups.c, NULL, &error)
        if status == MPE_ERR_INDEX:
            t = error.table
            lookups.bad = (error.position, error.value, error.count, self.names[t],
                           self.tables[t].num_rows, lookups.c.origins[t])
            return lookups
        _check(status, "prepare")
        return lookups

    def count(self, Lookups lookups, bint unique, bint accesses, bint dropped):
        """Add to the statistics what no other kernel counts."""
        cdef const mpe_unique* u = &lookups.u if unique else NULL
        with nogil:
            KERNELS.count(&self.c, &lookups.c, u, accesses, dropped, NULL)

    def admit(self, Lookups lookups, uint64_t step):
        """Admission of reserved lookups: their unique rows are pinned."""
        cdef mpe_status status
        cdef int32_t* p = <int32_t*>_data(lookups.slots)
        self.step = step
        with nogil:
            status = KERNELS.cache_admit(&self.c, &lookups.u, lookups.c.n, p, NULL)
        _check(status, "cache admission")
        lookups.admitted = True

    def refresh(self, Lookups lookups, Work work):
        """Find the slots of admitted rows as they are now; rows not cached are looked up again."""
        cdef int32_t* p = work.unique_at()
        cdef const int32_t* old = <const int32_t*>_data(lookups.slots)
        with nogil:
            KERNELS.cache_refresh(&self.c, &lookups.u, lookups.c.n, old, p, NULL)

    def scatter(self, Lookups lookups, Work work):
        """Spread the unique rows' slots over their lookups."""
        cdef const int32_t* q = work.unique_at()
        cdef int32_t* p = work.each_at()
        with nogil:
            KERNELS.scatter_slots(&lookups.u, q, lookups.c.n, p, NULL)

    def locate(self, Lookups lookups, Work work):
        """Find each lookup's slot by probing the cache; no state changes."""
        cdef int32_t* p = work.each_at()
        with nogil:
            KERNELS.cache_locate(&self.cache, lookups.c.keys, lookups.c.n, p, NULL)

    def release(self, Lookups lookups):
        """Take the pins back."""
        cdef const int32_t* p
        if not lookups.admitted:
            return
        p = <const int32_t*>_data(lookups.slots)
        with nogil:
            KERNELS.cache_release(&self.cache, &lookups.u, lookups.c.n, p, NULL)
        lookups.admitted = False

    def flush(self, uint64_t step):
        """Write dirty slots back."""
        cdef mpe_status status
        self.step = step
        with nogil:
            status = KERNELS.cache_flush(&self.c, NULL)
        _check(status, "flush")

    def lookup(self, Lookups lookups, Work work):
        """Run the forward of these lookups."""
        cdef mpe_status status
        cdef const int32_t* p = work.each_at()
        with nogil:
            status = KERNELS.lookup(&self.c, &lookups.c, p, &work.outputs, NULL)
        _check(status, "lookup")

    def weight_grad(self, Lookups lookups, Work work, out):
        """Write the gradient of the per-sample weights of this group's tables into `out`."""
        cdef mpe_status status
        cdef const int32_t* p = work.each_at()
        cdef float* q = <float*>_data(out)
        with nogil:
            status = KERNELS.weight_grad(&self.c, &lookups.c, p, &work.outputs, q, NULL)
        _check(status, "weight gradient")

    def update(self, Lookups lookups, Work work, tuple optimizer, uint64_t step):
        """Fused update. Return (non-finite rows, name of the first one's table, its row)."""
        cdef mpe_status status
        cdef mpe_optimizer o
        cdef mpe_error nonfinite
        cdef const int32_t* p = work.unique_at()
        o.kind, o.decay_mode, o.lr, o.eps, o.weight_decay = optimizer
        nonfinite.status, nonfinite.table, nonfinite.count = MPE_OK, 0, 0
        nonfinite.position = nonfinite.value = INT64_MAX
        self.step = step
        with nogil:
            status = KERNELS.update(&self.c, &o, &lookups.c, &lookups.u, p, &work.outputs,
                                    &nonfinite, NULL)
        _check(status, "update")
        if nonfinite.status == MPE_OK:
            return 0, None, None
        t = self.table_of(nonfinite.value)
        return nonfinite.count, self.names[t], nonfinite.value - self.tables[t].base

    cdef int table_of(self, uint64_t key):
        cdef int t = 0
        while <int64_t>key >= self.tables[t].base + self.tables[t].num_rows:
            t += 1
        return t

    def keys(self, int table, ids):
        """Linear row ids of a table's rows (int64 ids in range)."""
        return ids.astype(np.uint64) + np.uint64(self.tables[table].base)

    def read_rows(self, keys, View out):
        """Current values of rows as FP32."""
        cdef mpe_status status
        cdef uint64_t* p = <uint64_t*>_data(keys)
        cdef int64_t n = len(keys)
        with nogil:
            status = KERNELS.read_rows(&self.c, p, n, <float*>out.data, NULL)
        _check(status, "rows")

    def write_rows(self, keys, View values, uint64_t step):
        """Set rows (no duplicates) to storable values."""
        cdef mpe_status status
        cdef uint64_t* p = <uint64_t*>_data(keys)
        cdef int64_t n = len(keys)
        self.step = step
        with nogil:
            status = KERNELS.write_rows(&self.c, p, n, <const float*>values.data, NULL)
        _check(status, "set_rows")
