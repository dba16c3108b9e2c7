# Tensors as DLPack capsules; part of tensor.pyx.


cdef struct Exported:
    DLManagedTensorVersioned versioned
    DLManagedTensor legacy
    int64_t shape[MAX_NDIM]
    int64_t strides[MAX_NDIM]


cdef void delete_versioned(DLManagedTensorVersioned* self) noexcept with gil:
    Py_DECREF(<object>self.manager_ctx)
    free(self)


cdef void delete_legacy(DLManagedTensor* self) noexcept with gil:
    Py_DECREF(<object>self.manager_ctx)
    free(<char*>self - <size_t>&(<Exported*>NULL).legacy)


cdef void delete_unused_versioned(object capsule) noexcept:
    cdef DLManagedTensorVersioned* unused
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        unused = <DLManagedTensorVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        unused.deleter(unused)


cdef void delete_unused_legacy(object capsule) noexcept:
    cdef DLManagedTensor* unused
    if PyCapsule_IsValid(capsule, "dltensor"):
        unused = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
        unused.deleter(unused)


cdef Exported* export_tensor(Tensor tensor, DLTensor* out) except NULL:
    cdef Exported* exported = <Exported*>malloc(sizeof(Exported))
    cdef int64_t step = 1
    cdef int i
    if exported == NULL:
        raise MemoryError()
    memset(exported, 0, sizeof(Exported))
    for i in range(tensor.ndim):
        exported.shape[i] = tensor.extent[i]
    for i in range(tensor.ndim - 1, -1, -1):
        exported.strides[i] = step
        if i > 0:
            step *= max(1, tensor.extent[i])
    out.data = tensor.data if tensor.size else NULL
    out.device, out.ndim, out.dtype = tensor.place(), tensor.ndim, tensor.type
    out.shape, out.strides = exported.shape, exported.strides
    out.byte_offset = 0
    Py_INCREF(tensor)
    return exported


cdef object versioned_capsule(Tensor tensor, bint is_copy):
    cdef DLTensor described
    cdef Exported* exported = export_tensor(tensor, &described)
    cdef DLManagedTensorVersioned* managed = &exported.versioned
    managed.version.major, managed.version.minor = 1, 1
    managed.manager_ctx = <void*>tensor
    managed.deleter = delete_versioned
    managed.flags = DLPACK_FLAG_BITMASK_READ_ONLY if tensor.read_only else 0
    if is_copy:
        managed.flags |= DLPACK_FLAG_BITMASK_IS_COPIED
    managed.dl_tensor = described
    return PyCapsule_New(managed, "dltensor_versioned", delete_unused_versioned)


cdef object legacy_capsule(Tensor tensor):
    cdef DLTensor described
    cdef Exported* exported = export_tensor(tensor, &described)
    cdef DLManagedTensor* managed = &exported.legacy
    managed.manager_ctx = <void*>tensor
    managed.deleter = delete_legacy
    managed.dl_tensor = described
    return PyCapsule_New(managed, "dltensor", delete_unused_legacy)
