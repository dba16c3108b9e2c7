# The tables of one dimension and what is done with them; part of _cpu.pyx.


cdef class Group:
    """The tables of one dimension and their cache, as the kernels see them."""

    cdef mpe_group c
    cdef mpe_cache cache
    cdef mpe_table* tables
    cdef int capacity
    cdef readonly list names, columns
    cdef list keep
    cdef readonly int64_t total_rows

    def __cinit__(self, int num_tables, int dim, int rounding, uint64_t seed):
        self.tables = <mpe_table*>calloc(num_tables, sizeof(mpe_table))
        if self.tables == NULL:
            raise MemoryError()
        self.capacity = num_tables
        self.c.tables = self.tables
        self.c.dim = dim
        self.c.rounding = rounding
        self.c.seed = seed
        self.names, self.columns, self.keep = [], [], []

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
        self.total_rows += table.num_rows
        self.c.num_tables += 1
        self.names.append(name)
        self.columns.append(column)
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
        self.c.step = 0
        with nogil:
            status = KERNELS.init_rows(&self.c, table, kind, a, b, NULL)
        _check(status, "init_rows")

    def prepare(self, Batch batch, bint drop):
        """Return the group's lookups; IndexError for an index out of range unless `drop`."""
        cdef mpe_error error
        cdef mpe_status status
        cdef Lookups lookups = Lookups(self, batch)
        cdef int64_t* dropped = <int64_t*>_data(lookups.dropped)
        with nogil:
            status = KERNELS.prepare(&self.c, &batch.c, drop, &lookups.c, dropped, NULL, &error)
        if status == MPE_ERR_INDEX:
            size = self.tables[error.table].num_rows
            raise IndexError(
                f"table {self.names[error.table]!r} (num_embeddings={size}): index {error.value} "
                f"at position {error.position} of indices is out of range; {error.count} such "
                f"indices in the tables of this dimension")
        _check(status, "prepare")
        return lookups

    def count_accesses(self, Lookups lookups, bint accesses, bint dropped):
        """Add to the statistics what no kernel counts."""
        cdef const int64_t* n = <const int64_t*>_data(lookups.dropped)
        cdef const int64_t* ends = lookups.c.bag_offsets
        cdef int64_t size = lookups.c.batch_size
        cdef int64_t* stats
        cdef int t
        for t in range(self.c.num_tables):
            stats = self.tables[t].stats
            if accesses:
                stats[MPE_stat_accesses] += ends[(t + 1) * size] - ends[t * size] - n[t]
            if dropped:
                stats[MPE_stat_dropped] += n[t]

    def count_unique(self, Lookups lookups):
        """Count the unique rows of each table (groups without a cache)."""
        cdef int64_t low = 0, high, middle, first = 0, end
        cdef int t
        for t in range(self.c.num_tables):  # where the next table's rows begin
            end = self.tables[t].base + self.tables[t].num_rows
            low, high = first, lookups.u.count
            while low < high:
                middle = (low + high) // 2
                if <int64_t>lookups.u.rows[middle] < end:
                    low = middle + 1
                else:
                    high = middle
            self.tables[t].stats[MPE_stat_unique] += low - first
            first = low

    def admit(self, Lookups lookups, uint64_t step):
        """Admission: `lookups.slots` holds the pinned slots of the unique rows."""
        cdef mpe_status status
        lookups.dedup(self)
        slots = np.empty(lookups.u.count, np.int32)
        cdef int32_t* p = <int32_t*>_data(slots)
        self.c.step = step
        with nogil:
            status = KERNELS.cache_admit(&self.c, &lookups.u, p, NULL)
        _check(status, "cache admission")
        lookups.slots = slots

    def refresh(self, Lookups lookups):
        """Return the slots as they are now, rows that were not cached looked up again."""
        fresh = np.empty(lookups.u.count, np.int32)
        cdef int32_t* p = <int32_t*>_data(fresh)
        cdef const int32_t* old = <const int32_t*>_data(lookups.slots)
        with nogil:
            KERNELS.cache_refresh(&self.c, &lookups.u, old, p, NULL)
        return fresh

    def scatter(self, Lookups lookups, unique_slots):
        """Return one slot a lookup out of one slot a unique row."""
        slots = np.empty(lookups.c.n, np.int32)
        cdef int32_t* p = <int32_t*>_data(slots)
        cdef const int32_t* q = <const int32_t*>_data(unique_slots)
        with nogil:
            KERNELS.scatter_slots(&lookups.u, q, lookups.c.n, p, NULL)
        return slots

    def locate(self, Lookups lookups):
        """Return one slot a lookup by probing the cache; no state changes."""
        slots = np.empty(lookups.c.n, np.int32)
        cdef int32_t* p = <int32_t*>_data(slots)
        with nogil:
            KERNELS.cache_locate(&self.cache, lookups.c.keys, lookups.c.n, p, NULL)
        return slots

    def release(self, Lookups lookups):
        """Take the pins back."""
        cdef const int32_t* p
        if lookups.slots is None:
            return
        p = <const int32_t*>_data(lookups.slots)
        with nogil:
            KERNELS.cache_release(&self.cache, p, lookups.u.count, NULL)
        lookups.slots = None

    def flush(self, uint64_t step):
        """Write dirty slots back."""
        cdef mpe_status status
        self.c.step = step
        with nogil:
            status = KERNELS.cache_flush(&self.c, NULL)
        _check(status, "flush")

    cdef mpe_matrix* matrices(self, object views) except NULL:
        """One matrix a table: from the shared pooled view, or from a dict of views by name."""
        cdef View view
        cdef mpe_matrix* m = <mpe_matrix*>calloc(self.c.num_tables, sizeof(mpe_matrix))
        if m == NULL:
            raise MemoryError()
        try:
            for t in range(self.c.num_tables):
                if isinstance(views, dict):
                    view = views[self.names[t]]
                    m[t].data = <float*>view.data
                    m[t].stride = self.c.dim
                else:
                    view = views
                    m[t].data = <float*>view.data + <int64_t>self.columns[t]
                    m[t].stride = view.extent[1]
        except BaseException:
            free(m)
            raise
        return m

    def lookup(self, Lookups lookups, slots, out):
        """Run the forward of these lookups into `out` (a View, or a dict of them)."""
        cdef mpe_status status
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        cdef mpe_matrix* m = self.matrices(out)
        with nogil:
            status = KERNELS.lookup(&self.c, &lookups.c, p, m, NULL)
            free(m)
        _check(status, "lookup")

    def weight_grad(self, Lookups lookups, slots, grad, out):
        """Write the gradient of the per-sample weights of this group's tables into `out`."""
        cdef mpe_status status
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        result = np.empty(lookups.c.n, np.float32)
        cdef float* q = <float*>_data(result)
        cdef mpe_matrix* m = self.matrices(grad)
        with nogil:
            status = KERNELS.weight_grad(&self.c, &lookups.c, p, m, q, NULL)
            free(m)
        _check(status, "weight gradient")
        for here, there, count in lookups.segments:
            out[there:there + count] = result[here:here + count]

    def update(self, Lookups lookups, slots, grad, tuple optimizer, uint64_t step):
        """Fused update. Return (non-finite rows, name of the first one's table, its row)."""
        cdef mpe_status status
        cdef mpe_optimizer o
        cdef int64_t nonfinite = 0
        cdef uint64_t first = 0
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        o.kind, o.decay_mode, o.lr, o.eps, o.weight_decay = optimizer
        cdef mpe_matrix* m = self.matrices(grad)
        self.c.step = step
        with nogil:
            status = KERNELS.update(&self.c, &o, &lookups.c, &lookups.u, p, m, &nonfinite, &first,
                                    NULL)
            free(m)
        _check(status, "update")
        if nonfinite == 0:
            return 0, None, None
        t = self.table_of(first)
        return nonfinite, self.names[t], first - <uint64_t>self.tables[t].base

    cdef int table_of(self, uint64_t key):
        cdef int t = 0
        while <int64_t>key >= self.tables[t].base + self.tables[t].num_rows:
            t += 1
        return t

    def read_rows(self, int table, ids, View out):
        """Current values of rows (int64 ids in range) as FP32."""
        cdef mpe_table one = self.tables[table]
        cdef mpe_group group = self.c
        cdef mpe_lookups lookups
        cdef mpe_matrix m
        cdef int64_t bag_offsets[2]
        cdef mpe_status status
        keys = ids.astype(np.uint64) + np.uint64(one.base)
        slots = np.empty(len(keys), np.int32) if self.cached else None
        cdef int32_t* p = <int32_t*>_data(slots) if slots is not None else NULL
        one.pooling = MPE_pooling_none
        group.tables = &one
        group.num_tables = 1
        bag_offsets[0], bag_offsets[1] = 0, len(keys)
        lookups.n, lookups.batch_size = len(keys), 1
        lookups.keys = <uint64_t*>_data(keys)
        lookups.bags = NULL
        lookups.weights = NULL
        lookups.bag_offsets = bag_offsets
        m.data, m.stride = <float*>out.data, self.c.dim
        with nogil:
            if p != NULL:
                KERNELS.cache_locate(&self.cache, lookups.keys, lookups.n, p, NULL)
            status = KERNELS.lookup(&group, &lookups, p, &m, NULL)
        _check(status, "rows")

    def write_rows(self, int table, ids, View values, uint64_t step):
        """Set rows (int64 ids in range, no duplicates) to storable values."""
        cdef mpe_status status
        keys = ids.astype(np.uint64) + np.uint64(self.tables[table].base)
        cdef uint64_t* p = <uint64_t*>_data(keys)
        cdef int64_t n = len(keys)
        self.c.step = step
        with nogil:
            status = KERNELS.write_rows(&self.c, p, n, <const float*>values.data, NULL)
        _check(status, "set_rows")
