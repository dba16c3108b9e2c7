# The workspace of one call over a group's lookups, and the forward of groups; part of kernels.pyx.


cdef class CallWorkspace:
    """What a call over a group's lookups needs besides them: outputs or gradients, and slots.

    It is allocated before state changes, so that nothing fails for want of memory after that.
    `each`: with room for a slot a lookup, besides one a unique row.
    """

    cdef mpe_outputs outputs
    cdef Memory memory, matrices
    cdef object views
    cdef int32_t* unique_slots  # both NULL where the group has no cache
    cdef int32_t* slots

    def __init__(self, Group group, GroupBatch lookups, views, bint each, Stream on):
        cdef View view
        cdef vector[mpe_matrix] tables
        cdef int64_t end = 0, unique, slots
        self.views = views
        if group.cached:
            unique, slots = part(&end, 4 * lookups.room), part(&end, 4 * lookups.c.n * each)
            self.memory = borrow(on, end)
            self.unique_slots = <int32_t*>at(self.memory, unique)
            self.slots = <int32_t*>at(self.memory, slots) if each else NULL
        if not isinstance(views, dict):
            view = views
            self.outputs.shared.data = <float*>view.data
            self.outputs.shared.stride = view.extent[1]
            return
        if group.c.num_tables == 1:  # where it lies says all, and no graph has to keep a copy
            view = views[group.names[0]]
            self.outputs.shared.data = <float*>view.data - group.tables[0].column
            self.outputs.shared.stride = group.c.dim
            return
        tables.resize(group.c.num_tables)
        for t in range(group.c.num_tables):
            view = views[group.names[t]]
            tables[t].data, tables[t].stride = <float*>view.data, group.c.dim
        self.matrices = borrow(on, tables.size() * sizeof(mpe_matrix))
        upload(on, self.matrices.data, tables.data(), tables.size() * sizeof(mpe_matrix))
        self.outputs.tables = <const mpe_matrix*>self.matrices.data


def lookup(list groups, list lookups, list work, Stream on):
    """Run the forward of several groups' lookups."""
    cdef Group group
    cdef GroupBatch share
    cdef CallWorkspace space
    cdef vector[mpe_part] parts
    cdef mpe_part one
    cdef mpe_status status
    cdef int32_t previous, count
    for group, share, space in zip(groups, lookups, work, strict=True):
        one.group, one.lookups = &group.c, &share.c
        one.slots, one.outputs = space.slots, &space.outputs
        parts.push_back(one)
    count = <int32_t>parts.size()
    previous = on.device.enter()
    with nogil:
        status = on.device.kernels.lookup(parts.data(), count, on.handle)
    on.device.leave(previous, status, "lookup")
