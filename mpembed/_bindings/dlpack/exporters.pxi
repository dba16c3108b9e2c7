# Types of arrays that offer a C function table; part of dlpack.pyx.


@cython.final
cdef class Exporter:
    """What is known of a type: its C function table, if any, and what to ask its objects first."""

    cdef const DLPackExchangeAPI* api
    cdef object capsule  # keeps the table alive
    cdef bint has_dlpack
    cdef bint torch_like  # the C table skips what torch's __dlpack__ refuses
    cdef bint waits  # its arrays may still be computed, and say when that is done, as JAX's do


cdef dict exporters = {}


cdef Exporter exporter_of(type tp):
    cdef Exporter known = <Exporter>exporters.get(tp)
    cdef const DLPackExchangeAPIHeader* header
    if known is not None:
        return known
    known = Exporter.__new__(Exporter)
    known.has_dlpack = hasattr(tp, "__dlpack__")
    known.waits = known.has_dlpack and hasattr(tp, "block_until_ready")
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


def wait_until_computed(*given):
    """Wait for arrays that are still being computed, JAX's, also in lists and dicts.

    Call this before the lock of a call is taken: what computes them may call the same collection,
    and would wait for the lock while their export waits for it.
    """
    wait_for_each(given, 3)


cdef int wait_for_each(object given, int depth) except -1:
    cdef Exporter exporter
    for one in given:
        if one is None or cnp.PyArray_CheckExact(one):
            continue
        exporter = exporter_of(type(one))
        if exporter.waits:
            try:
                one.block_until_ready()
            except Exception:  # its export fails too, and the error then names the argument
                pass
        elif exporter.has_dlpack:
            continue
        elif depth == 0:  # nothing that any call takes
            continue
        elif isinstance(one, (list, tuple)):
            wait_for_each(one, depth - 1)
        elif isinstance(one, Mapping):
            wait_for_each(one.values(), depth - 1)
    return 0


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
    """Borrow a tensor's memory; the references to it and to its storage keep it alive."""
    cdef DLTensor borrowed
    cdef View v = View.__new__(View)
    try:
        v.storage = tensor.untyped_storage()  # first: then what is borrowed lies in it
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


cdef bint lies_in(View v, DLTensor* tensor) noexcept:
    """Whether a tensor is in the memory that was borrowed, in the same shape."""
    cdef int i
    if tensor.ndim != v.ndim:
        return False
    for i in range(v.ndim):
        if tensor.shape[i] != v.extent[i]:
            return False
    return v.size == 0 or <char*>tensor.data + tensor.byte_offset == <char*>v.data


cdef bint has_moved(View v) except -1:
    cdef DLTensor borrowed
    if v.storage is not None:
        if exporter_of(type(v.owner)).api.dltensor_from_py_object_no_sync(
                <void*>v.owner, &borrowed) != 0:
            return True
        return not lies_in(v, &borrowed)
    if v.owner is not None and cnp.PyArray_Check(v.owner):
        return not is_where_it_was(v, <cnp.ndarray>v.owner)
    return False


cdef bint is_where_it_was(View v, cnp.ndarray a) noexcept:
    """Whether NumPy has an array at the same place, in the same shape, in memory that holds it.

    Memory that shrinks may stay where it is.
    """
    cdef int i
    if cnp.PyArray_NDIM(a) != v.ndim:
        return False
    for i in range(v.ndim):
        if cnp.PyArray_DIMS(a)[i] != v.extent[i]:
            return False
    if v.size == 0:
        return True
    return cnp.PyArray_DATA(a) == v.data and lies_in_base(v, a)


cdef bint lies_in_base(View v, cnp.ndarray a) noexcept:
    """Whether the array that owns the memory of another one, which may be it, still has it all."""
    cdef int i
    cdef char* begin = <char*>v.data
    cdef char* end = begin + cnp.PyArray_ITEMSIZE(a)
    cdef char* owned
    cdef cnp.npy_intp step
    cdef cnp.ndarray base = a
    while cnp.PyArray_BASE(base) != NULL:
        if not cnp.PyArray_Check(<object>cnp.PyArray_BASE(base)):
            return True  # not NumPy's, which could resize it
        base = <cnp.ndarray>cnp.PyArray_BASE(base)
    for i in range(v.ndim):
        step = cnp.PyArray_STRIDES(a)[i] * (v.extent[i] - 1)
        if step < 0:
            begin += step
        else:
            end += step
    owned = <char*>cnp.PyArray_DATA(base)
    return owned <= begin and end <= owned + cnp.PyArray_NBYTES(base)


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
