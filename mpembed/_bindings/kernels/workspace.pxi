# The workspace of one call over a group's lookups, and the forward of groups; part of kernels.pyx.


cdef class CallWorkspace:
    """What a call over a group's lookups needs besides them: outputs or gradients, and slots.

    It is allocated before state changes, so that nothing fails for want of memory after that.
    `each`: with a slot for each lookup, not only for each unique row.
    """

    cdef mpe_outputs outputs
    cdef Memory memory, matrices
    cdef object views
    cdef int32_t* unique_slots  # both NULL where the group has no cache
    cdef int32_t* slots

    def __init__(self, Group group, GroupBatch share, views, bint each, Stream on):
        cdef View view
        cdef vector[mpe_matrix] tables
        cdef int64_t end = 0, unique, slots
        self.views = views
        if group.cached:
            unique = reserve_piece(&end, 4 * share.unique_capacity)
            slots = reserve_piece(&end, 4 * share.lookups.n * each)
            self.memory = borrow(on, end)
            self.unique_slots = <int32_t*>at(self.memory, unique)
            self.slots = <int32_t*>at(self.memory, slots) if each else NULL
        if not isinstance(views, dict):
            view = views
            self.outputs.shared.data = <float*>view.data
            self.outputs.shared.stride = view.extent[1]
            return
        if group.group.num_tables == 1:  # where it lies says all, and no graph has to keep a copy
            view = views[group.names[0]]
            self.outputs.shared.data = <float*>view.data - group.tables[0].column
            self.outputs.shared.stride = group.group.dim
            return
        tables.resize(group.group.num_tables)
        for t in range(group.group.num_tables):
            view = views[group.names[t]]
            tables[t].data, tables[t].stride = <float*>view.data, group.group.dim
        self.matrices = borrow(on, tables.size() * sizeof(mpe_matrix))
        upload(on, self.matrices.data, tables.data(), tables.size() * sizeof(mpe_matrix))
        self.outputs.tables = <const mpe_matrix*>self.matrices.data


def lookup(list groups, list shares, list workspaces, Stream on):
    """Run the forward of several groups' lookups."""
    cdef Group group
    cdef GroupBatch share
    cdef CallWorkspace workspace
    cdef vector[mpe_lookup_args] all_args
    cdef mpe_lookup_args args
    cdef int32_t count = <int32_t>len(groups)
    for group, share, workspace in zip(groups, shares, workspaces, strict=True):
        args.group, args.lookups = &group.group, &share.lookups
        args.slots, args.outputs = workspace.slots, &workspace.outputs
        all_args.push_back(args)
    on.device.check(
        launch(on.device.target, on.device.kernels.lookup, all_args.data(), count, on.handle),
        "lookup")
