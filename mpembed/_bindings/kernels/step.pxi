# The training step of a collection, mpembed/step.h; part of kernels.pyx.


cdef class Step:
    """What the step of a collection works on: its groups, counters, rules and errors.

    Every call names its stream and releases the GIL. What a failure leaves is said in the header.
    """

    cdef mpe_collection collection
    cdef vector[mpe_group] fields
    cdef readonly Device device
    cdef readonly list groups
    cdef list names  # of the tables, in the order of a batch
    cdef StepCounter steps
    cdef UpdateRules rules
    cdef DeviceErrors errors

    def __init__(self, list groups, list names, StepCounter steps, UpdateRules rules,
                 DeviceErrors errors, bint drop):
        cdef Group group
        self.device, self.groups, self.names = steps.device, groups, names
        self.steps, self.rules, self.errors = steps, rules, errors
        for group in groups:
            self.fields.push_back(group.group)
        self.collection.backend = self.device.step_kernels
        self.collection.groups = self.fields.data()
        self.collection.num_groups = <int32_t>len(groups)
        self.collection.step, self.collection.updates = steps.step, rules.updates
        self.collection.parameters = rules.parameters
        self.collection.coefficients = rules.coefficients
        self.collection.errors = errors.found
        self.collection.drop = drop

    def reseed(self, uint64_t seed):
        """Draw all random bits from this seed from the next call on."""
        cdef Group group
        for i, group in enumerate(self.groups):
            group.group.seed = self.fields[i].seed = seed

    def open(self, Batch batch, Stream on):
        """Return an opened batch, or (table, position, value, count) of an index out of range.

        Only the CPU says what is wrong; ValueError for offsets.
        """
        cdef OpenedBatch made = OpenedBatch.__new__(OpenedBatch)
        cdef mpe_error error
        cdef Outcome outcome
        give_back_deferred()
        close_deferred()
        made.step, made.on = self, on
        outcome = launch(self.device.target, mpe_open, &self.collection, &batch.batch, on.handle,
                         &made.handle, &error)
        if outcome.status == MPE_ERR_INDEX:
            return error.table, error.position, error.value, error.count
        if outcome.status == MPE_ERR_OFFSETS:
            raise batch.offsets_error(&error)
        if outcome.status == MPE_ERR_VALUE:
            raise ValueError(f"a batch may have at most {MPE_MAX_LOOKUPS} indices and bags a "
                             f"group of tables, got {error.value}")
        self.device.check(outcome, "reading a batch")
        return made

    def backward(self, list opened, list grads, list weight_grads, Stream on):
        """Update the rows of batches once; write the gradients of weights that are not None."""
        cdef OpenedBatch one
        cdef Results results
        cdef vector[mpe_batch_gradient] batches
        cdef mpe_batch_gradient batch
        kept = [Results(self, views) for views in grads]
        for one, results, weight_grad in zip(opened, kept, weight_grads, strict=True):
            batch.batch, batch.grad = one.handle, results.fields
            batch.weight_grad = <float*>_address(weight_grad)
            batches.push_back(batch)
        self.check(
            launch(self.device.target, mpe_backward, &self.collection, batches.data(),
                   batches.size(), on.handle),
            "update")

    def flush(self, Stream on):
        """Write dirty slots back."""
        self.check(launch(self.device.target, mpe_flush, &self.collection, on.handle), "flush")

    def write_rows(self, Group group, Keys keys, View values, Stream on):
        """Set rows of one group (no duplicates) to storable values."""
        self.check(
            launch(self.device.target, mpe_write_rows, &self.collection, group.number, keys.keys,
                   keys.n, <const float*>values.data, on.handle),
            "set_rows")

    cdef int check(self, Outcome outcome, str what) except -1:
        """Count a step that may have been taken; raise what has failed."""
        self.steps.counted += 1
        return self.device.check(outcome, what)


cdef class Results:
    """Outputs or gradients: a View, or a dict of table name -> View."""

    cdef mpe_results fields
    cdef vector[mpe_matrix] tables
    cdef object views

    def __init__(self, Step step, views):
        cdef View view
        cdef mpe_matrix one
        self.views = views
        if not isinstance(views, dict):
            view = views
            self.fields.shared.data = <float*>view.data
            self.fields.shared.stride = view.extent[1]
            return
        for name in step.names:
            view = views[name]
            one.data, one.stride = <float*>view.data, view.extent[1]
            self.tables.push_back(one)
        self.fields.tables = self.tables.data()


# Its step and stream are needed until its memory is given back.
@cython.no_gc_clear
cdef class OpenedBatch:
    """A batch between its opening and its closing; it owns its workspace."""

    cdef mpe_open_batch* handle
    cdef Step step
    cdef Stream on  # the last one it was used on

    cdef mpe_batch_info info(self) noexcept:
        cdef mpe_batch_info info
        mpe_describe_batch(self.handle, &info)
        return info

    @property
    def nbytes(self):
        """Bytes of workspace."""
        return self.info().bytes

    @property
    def capture(self):
        """The capture of a CUDA graph that it was opened in, or 0."""
        return self.info().capture

    @property
    def weighted(self):
        """Whether it has per-sample weights."""
        return bool(self.info().weighted)

    @property
    def is_open(self):
        """Whether it is not closed; a failed call may close it."""
        return bool(self.info().open)

    def same_rows(self, OpenedBatch other):
        """Whether two batches of the CPU ask for the same rows in the same bags.

        Indices that were dropped are equal.
        """
        return bool(mpe_same_rows(self.handle, other.handle))

    def take_weights(self, OpenedBatch other):
        """Use the per-sample weights of another batch with the same rows."""
        mpe_take_weights(self.handle, other.handle)

    def raise_offsets(self, Batch batch, Stream on):
        """Raise ValueError if a device has found the offsets wrong; it is waited for."""
        cdef mpe_error error
        if on.device.raises_at_once:
            return
        on.refuse_capture("copying to the host")
        on.device.check(
            launch(on.device.target, mpe_batch_error, self.handle, on.handle, &error),
            "copying from the device")
        if error.status == MPE_ERR_OFFSETS:
            raise batch.offsets_error(&error)

    def admit(self, Stream on):
        """Admit the rows to the caches and pin them."""
        self.on = on
        self.step.check(
            launch(on.device.target, mpe_admit, self.handle, on.handle), "cache admission")

    def forward(self, OpenedBatch replaced, views, Stream on):
        """Admit unless that was done, close `replaced` (or None), and write the outputs."""
        cdef Results results = Results(self.step, views)
        cdef mpe_open_batch* old = NULL
        if replaced is not None:
            old = replaced.handle
        self.on = on
        self.step.check(
            launch(on.device.target, mpe_forward, self.handle, old, &results.fields, on.handle),
            "a forward")

    def evaluate(self, views, Stream on):
        """Write the outputs, changing no state."""
        cdef Results results = Results(self.step, views)
        self.on = on
        on.device.check(
            launch(on.device.target, mpe_evaluate, self.handle, &results.fields, on.handle),
            "lookup")

    def close(self, Stream on):
        """Unpin the rows and give the workspace back."""
        on.device.check(launch(on.device.target, mpe_close, self.handle, on.handle), "unpinning")

    def forget(self):
        """Give up the batch of a capture that has ended: its memory is the graph's."""
        mpe_forget(self.handle)

    cdef bint can_be_closed(self) noexcept:
        """Whether the last stream is now in the capture that the batch was opened in."""
        try:
            self.on.query_capture()
        except RuntimeError:  # the default stream, while another one is captured
            return False
        return self.on.capture == self.info().capture

    def __dealloc__(self):
        cdef OpenedBatch heir
        if self.handle == NULL:
            return
        if self.info().open and not self.can_be_closed():
            if self.info().capture == 0 and deferred_batches is not None:
                heir = OpenedBatch.__new__(OpenedBatch)
                heir.handle, heir.step, heir.on = self.handle, self.step, self.on
                deferred_batches.append(heir)
                return
            mpe_forget(self.handle)
        call(self.on.device.target, mpe_close, self.handle, self.on.handle)
        mpe_free(self.handle)


cdef list deferred_batches = []  # whose owners died while their stream was captured


cdef int close_deferred() except -1:
    """Close what can be closed by now."""
    global deferred_batches
    if deferred_batches:
        deferred_batches = []  # the old list's batches die, or come here again
    return 0
