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
        """Return the group's lookups; IndexError for an index out of range unless `drop`."""
        cdef mpe_error error
        cdef mpe_status status
        cdef Lookups lookups = Lookups(self, batch)
        with nogil:
            status = KERNELS.prepare(&self.c, &batch.c, drop, NULL, &lookups.c, NULL, &error)
        if status == MPE_ERR_INDEX:
            size = self.tables[error.table].num_rows
            raise IndexError(
                f"table {self.names[error.table]!r} (num_embeddings={size}): index {error.value} "
                f"at position {error.position} of indices is out of range; {error.count} such "
                f"indices in the tables of this dimension")
        _check(status, "prepare")
        return lookups

    def count(self, Lookups lookups, bint unique, bint accesses, bint dropped):
        """Add to the statistics what no other kernel counts."""
        cdef const mpe_unique* u = &lookups.u if unique else NULL
        with nogil:
            KERNELS.count(&self.c, &lookups.c, u, accesses, dropped, NULL)

    def admit(self, Lookups lookups, uint64_t step):
        """Admission: `lookups.slots` holds the pinned slots of the unique rows."""
        cdef mpe_status status
        lookups.dedup(self)
        slots = np.empty(lookups.count, np.int32)
        cdef int32_t* p = <int32_t*>_data(slots)
        self.step = step
        with nogil:
            status = KERNELS.cache_admit(&self.c, &lookups.u, lookups.c.n, p, NULL)
        _check(status, "cache admission")
        lookups.slots = slots

    def refresh(self, Lookups lookups):
        """Return the slots as they are now, rows that were not cached looked up again."""
        fresh = np.empty(lookups.count, np.int32)
        cdef int32_t* p = <int32_t*>_data(fresh)
        cdef const int32_t* old = <const int32_t*>_data(lookups.slots)
        with nogil:
            KERNELS.cache_refresh(&self.c, &lookups.u, lookups.c.n, old, p, NULL)
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
            KERNELS.cache_release(&self.cache, &lookups.u, lookups.c.n, p, NULL)
        lookups.slots = None

    def flush(self, uint64_t step):
        """Write dirty slots back."""
        cdef mpe_status status
        self.step = step
        with nogil:
            status = KERNELS.cache_flush(&self.c, NULL)
        _check(status, "flush")

    cdef int outputs(self, object views, mpe_outputs* o) except -1:
        """Describe a shared pooled view, or a dict of views by name: then free `tables`."""
        cdef View view
        cdef mpe_matrix* m
        o.tables = NULL
        if not isinstance(views, dict):
            view = views
            o.shared.data, o.shared.stride = <float*>view.data, view.extent[1]
            return 0
        m = <mpe_matrix*>calloc(self.c.num_tables, sizeof(mpe_matrix))
        if m == NULL:
            raise MemoryError()
        for t in range(self.c.num_tables):
            view = views[self.names[t]]
            m[t].data, m[t].stride = <float*>view.data, self.c.dim
        o.tables = m
        return 0

    def lookup(self, Lookups lookups, slots, out):
        """Run the forward of these lookups into `out` (a View, or a dict of them)."""
        cdef mpe_status status
        cdef mpe_outputs o
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        self.outputs(out, &o)
        with nogil:
            status = KERNELS.lookup(&self.c, &lookups.c, p, &o, NULL)
            free(<void*>o.tables)
        _check(status, "lookup")

    def weight_grad(self, Lookups lookups, slots, grad, out):
        """Write the gradient of the per-sample weights of this group's tables into `out`."""
        cdef mpe_status status
        cdef mpe_outputs o
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        cdef float* q = <float*>_data(out)
        self.outputs(grad, &o)
        with nogil:
            status = KERNELS.weight_grad(&self.c, &lookups.c, p, &o, q, NULL)
            free(<void*>o.tables)
        _check(status, "weight gradient")

    def update(self, Lookups lookups, slots, grad, tuple optimizer, uint64_t step):
        """Fused update. Return (non-finite rows, name of the first one's table, its row)."""
        cdef mpe_status status
        cdef mpe_outputs outputs
        cdef mpe_optimizer o
        cdef mpe_error nonfinite
        cdef const int32_t* p = <const int32_t*>_data(slots) if slots is not None else NULL
        o.kind, o.decay_mode, o.lr, o.eps, o.weight_decay = optimizer
        nonfinite.status, nonfinite.table, nonfinite.count = MPE_OK, 0, 0
        nonfinite.position = nonfinite.value = INT64_MAX
        self.outputs(grad, &outputs)
        self.step = step
        with nogil:
            status = KERNELS.update(&self.c, &o, &lookups.c, &lookups.u, p, &outputs, &nonfinite,
                                    NULL)
            free(<void*>outputs.tables)
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

    def read_rows(self, int table, ids, View out):
        """Current values of rows (int64 ids in range) as FP32."""
        cdef mpe_status status
        keys = ids.astype(np.uint64) + np.uint64(self.tables[table].base)
        cdef uint64_t* p = <uint64_t*>_data(keys)
        cdef int64_t n = len(keys)
        with nogil:
            status = KERNELS.read_rows(&self.c, p, n, <float*>out.data, NULL)
        _check(status, "rows")

    def write_rows(self, int table, ids, View values, uint64_t step):
        """Set rows (int64 ids in range, no duplicates) to storable values."""
        cdef mpe_status status
        keys = ids.astype(np.uint64) + np.uint64(self.tables[table].base)
        cdef uint64_t* p = <uint64_t*>_data(keys)
        cdef int64_t n = len(keys)
        self.step = step
        with nogil:
            status = KERNELS.write_rows(&self.c, p, n, <const float*>values.data, NULL)
        _check(status, "set_rows")
