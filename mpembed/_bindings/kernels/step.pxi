# The training step of a collection, mpembed/step.h; part of kernels.pyx.


# Open batches that die in the same garbage still need what it refers to.
@cython.no_gc_clear
cdef class Step:
    """What the step of a collection works on: its groups, counters, rules and errors.

    Every call names its stream and releases the GIL. What a failure leaves is said in the header.

    The calls on batches note what became of these before any bytecode runs, so that no exception
    comes between the two: what Python keeps beside it, such as the list of prefetches, is looked up
    here.
    """

    cdef mpe_collection collection
    cdef vector[mpe_group] fields
    cdef readonly Device device
    cdef readonly tuple groups  # no list, which the garbage collector would clear
    cdef list names  # of the tables, in the order of a batch
    cdef StepCounter steps
    cdef UpdateRules rules
    cdef DeviceErrors errors
    cdef CallOrder calls  # in which open batches die; None where none is admitted
    # The admitted batches that are open and, of these, those of captures: id -> weak reference.
    cdef dict pinning, captured

    def __init__(self, list groups, list names, StepCounter steps, UpdateRules rules,
                 DeviceErrors errors, bint drop, CallOrder calls=None):
        cdef Group group
        self.calls = calls
        self.pinning, self.captured = {}, {}
        self.device, self.groups, self.names = steps.device, tuple(groups), names
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
        made.note()
        return made

    @property
    def num_open(self):
        """The number of admitted batches that are open."""
        return len(self.pinning)

    @property
    def num_captured(self):
        """Of these, the number of those that were opened in a capture."""
        return len(self.captured)

    def open_batches(self):
        """Return the admitted batches that are open."""
        found = [reference() for reference in list(self.pinning.values())]
        return [one for one in found if one is not None]

    def close(self, list batches, Stream on):
        """Unpin the rows of batches and give their workspace back."""
        cdef OpenedBatch one
        cdef Outcome outcome, failed
        failed.status, failed.step = MPE_OK, <const char*>NULL
        for one in batches:
            outcome = launch(on.device.target, mpe_close, one.handle, on.handle)
            one.note()
            if failed.status == MPE_OK:
                failed = outcome
        on.device.check(failed, "unpinning")

    def close_lost(self, Stream on):
        """Close the batches whose owners died while that was not possible."""
        cdef OpenedBatch one
        if not deferred_batches:
            return
        mine, others = [], []
        for one in take_deferred():
            found = mine if one.step is self and one.capture == on.capture else others
            found.append(one)
        self.close(mine, on)
        del one, others  # those die, or come back

    def backward(self, list opened, list grads, list weight_grads, Stream on):
        """Update the rows of batches once; write the gradients of weights that are not None."""
        cdef OpenedBatch one
        cdef Results results
        cdef vector[mpe_batch_gradient] batches
        cdef mpe_batch_gradient batch
        cdef Outcome outcome
        kept = [Results(self, views) for views in grads]
        for one, results, weight_grad in zip(opened, kept, weight_grads, strict=True):
            batch.batch, batch.grad = one.handle, results.fields
            batch.weight_grad = <float*>_address(weight_grad)
            batches.push_back(batch)
        outcome = launch(self.device.target, mpe_backward, &self.collection, batches.data(),
                         batches.size(), on.handle)
        for one in opened:  # without memory, they may be closed all the same
            one.note()
        self.check(outcome, "update")

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
            self.fields.shared.data = view.data
            self.fields.shared.stride = view.extent[1]
            self.fields.format = output_format(view)
            return
        for name in step.names:
            view = views[name]
            one.data, one.stride = view.data, view.extent[1]
            self.fields.format = output_format(view)  # the same for all
            self.tables.push_back(one)
        self.fields.tables = self.tables.data()
