# Types of arrays that offer a C function table; part of dlpack.pyx.


@cython.final
cdef class Exporter:
    """What is known of a type: its C function table, if any, and what to ask its objects first."""

    cdef const DLPackExchangeAPI* api
    cdef object capsule  # keeps the table alive
    cdef bint has_dlpack
    cdef bint torch_like  # the C table skips what torch's __dlpack__ refuses


cdef dict exporters = {}


cdef Exporter exporter_of(type tp):
    cdef Exporter known = <Exporter>exporters.get(tp)
    cdef const DLPackExchangeAPIHeader* header
    if known is not None:
        return known
    known = Exporter.__new__(Exporter)
    known.has_dlpack = hasattr(tp, "__dlpack__")
    known.capsule = getattr(tp, "__dlpack_c_exchange_api__", None)
    if known.capsule is not None and PyCapsule_IsValid(known.capsule, "dlpack_exchange_api"):
        header = <const DLPackExchangeAPIHeader*>PyCapsule_GetPointer(
            known.capsule, "dlpack_exchange_api")
        while header != NULL and header.version.major != 1:
            header = header.prev_api
        known.api = <const DLPackExchangeAPI*>header
        if known.api != NULL and known.api.managed_tensor_from_py_object_no_sync == NULL:
            known.api = NULL
    known.torch_like = (known.api != NULL and known.api.dltensor_from_py_object_no_sync != NULL
                        and hasattr(tp, "requires_grad") and hasattr(tp, "is_neg"))
    if len(exporters) >= 64:  # types made at run time must not pile up
        exporters.clear()
    exporters[tp] = known
    return known


cdef int check_bits(View v, object tensor) except -1:
    """Refuse tensors that autograd watches, or whose memory does not hold their values."""
    if tensor.requires_grad and v.ndim == 0:
        raise BufferError(
            f"{v.name}: is a scalar that requires grad, as a loss is; call its backward() and pass "
            "the gradient of the output")
    if tensor.requires_grad:
        raise BufferError(f"{v.name}: requires grad, which is lost here; pass {v.name}.detach()")
    if tensor.is_neg():
        raise BufferError(f"{v.name}: has its negative bit set; pass {v.name}.resolve_neg()")
    if v.type.code == kDLComplex and tensor.is_conj():
        raise BufferError(f"{v.name}: has its conjugate bit set; pass {v.name}.resolve_conj()")
    return 0


cdef View from_torch(object tensor, str name, Exporter exporter, Stream on):
    """Borrow a tensor's memory; the reference to the tensor keeps it alive."""
    cdef DLTensor borrowed
    cdef View v = View.__new__(View)
    try:
        if exporter.api.dltensor_from_py_object_no_sync(<void*>tensor, &borrowed) != 0:
            raise BufferError("it exported nothing")
    except Exception as error:
        raise explained(error, tensor, name) from error
    v.name = name
    v.owner = tensor
    v.writable = True  # torch knows no read-only tensors
    fill(v, &borrowed, on)
    if v.kind & (I8 | I16 | I32 | I64 | U8 | BOOL) == 0:  # whole numbers are never any of this
        check_bits(v, tensor)
    return v


cdef View from_table(object obj, str name, Exporter exporter, Stream on):
    """Import through the exporter's C function table."""
    cdef DLManagedTensorVersioned* managed = NULL
    try:
        if (exporter.api.managed_tensor_from_py_object_no_sync(<void*>obj, &managed) != 0
                or managed == NULL):
            raise BufferError("it exported nothing")
    except Exception as error:
        raise explained(error, obj, name) from error
    return from_versioned(managed, name, on)
