# What a tensor lends through DLPack; part of tensor.pyx.


cdef struct Lent:
    DLManagedTensorVersioned versioned
    DLManagedTensor legacy
    int64_t shape[MAX_NDIM]
    int64_t strides[MAX_NDIM]


cdef void give_back_versioned(DLManagedTensorVersioned* self) noexcept with gil:
    Py_DECREF(<object>self.manager_ctx)
    free(self)


cdef void give_back_legacy(DLManagedTensor* self) noexcept with gil:
    Py_DECREF(<object>self.manager_ctx)
    free(<char*>self - <size_t>&(<Lent*>NULL).legacy)


cdef void drop_versioned(object capsule) noexcept:
    cdef DLManagedTensorVersioned* unused
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        unused = <DLManagedTensorVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        unused.deleter(unused)


cdef void drop_legacy(object capsule) noexcept:
    cdef DLManagedTensor* unused
    if PyCapsule_IsValid(capsule, "dltensor"):
        unused = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
        unused.deleter(unused)


cdef Lent* lend(Tensor t, DLTensor* out) except NULL:
    cdef Lent* lent = <Lent*>malloc(sizeof(Lent))
    cdef int i
    if lent == NULL:
        raise MemoryError()
    memset(lent, 0, sizeof(Lent))
    for i in range(t.ndim):
        lent.shape[i] = t.extent[i]
    for i in range(t.ndim - 1, -1, -1):
        lent.strides[i] = 1 if i == t.ndim - 1 else lent.strides[i + 1] * max(1, t.extent[i + 1])
    out.data = t.data if t.size else NULL
    out.device, out.ndim, out.dtype = t.place(), t.ndim, t.type
    out.shape, out.strides = lent.shape, lent.strides
    out.byte_offset = 0
    Py_INCREF(t)
    return lent


cdef object versioned_capsule(Tensor t, bint is_copy):
    cdef DLTensor described
    cdef Lent* lent = lend(t, &described)
    cdef DLManagedTensorVersioned* m = &lent.versioned
    m.version.major, m.version.minor = 1, 1
    m.manager_ctx = <void*>t
    m.deleter = give_back_versioned
    m.flags = DLPACK_FLAG_BITMASK_READ_ONLY if t.read_only else 0
    if is_copy:
        m.flags |= DLPACK_FLAG_BITMASK_IS_COPIED
    m.dl_tensor = described
    return PyCapsule_New(m, "dltensor_versioned", drop_versioned)


cdef object legacy_capsule(Tensor t):
    cdef DLTensor described
    cdef Lent* lent = lend(t, &described)
    cdef DLManagedTensor* m = &lent.legacy
    m.manager_ctx = <void*>t
    m.deleter = give_back_legacy
    m.dl_tensor = described
    return PyCapsule_New(m, "dltensor", drop_legacy)
