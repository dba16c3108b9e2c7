"""Import of arrays: NumPy directly, everything else through DLPack."""

from libc.stdint cimport int64_t, uint64_t

cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName

from mpembed._dlpack_c cimport (
    DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED, DLPACK_FLAG_BITMASK_READ_ONLY, DLManagedTensor,
    DLManagedTensorVersioned, DLPackExchangeAPI, DLPackExchangeAPIHeader, DLTensor, kDLComplex,
    kDLCPU, kDLCUDAHost, kDLROCMHost)
from mpembed._view cimport (
    BOOL, I8, I16, I32, I64, MAX_NDIM, U8, View, finish, from_numpy, too_many_dimensions)

import sys

cnp.import_array()

cdef dict DEVICES = {
    2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda-managed", 14: "oneapi",
    15: "webgpu",
}


cdef str device_name(int64_t device_type, int64_t device_id):
    return f"{DEVICES.get(device_type, f'device type {device_type}')}:{device_id}"


cdef bint on_host(int64_t device_type) noexcept:
    return device_type == kDLCPU or device_type == kDLCUDAHost or device_type == kDLROCMHost


cdef int refuse_device(str name, int64_t device_type, int64_t device_id) except -1:
    device = device_name(device_type, device_id)
    raise BufferError(f"{name}: is on {device}, but an array in CPU memory is needed")


cdef int fill(View v, const DLTensor* t) except -1:
    """Take over what a tensor says of itself."""
    cdef int i
    cdef int64_t expected = 1
    if not on_host(t.device.device_type):
        refuse_device(v.name, t.device.device_type, t.device.device_id)
    if t.ndim < 0 or t.ndim > MAX_NDIM:
        too_many_dimensions(v.name, t.ndim)
    if t.ndim > 0 and t.shape == NULL:
        raise BufferError(f"{v.name}: its exporter gives no shape")
    v.device = t.device
    v.type = t.dtype
    v.ndim = t.ndim
    for i in range(v.ndim):
        v.extent[i] = t.shape[i]
        v.stride[i] = t.strides[i] if t.strides != NULL else 0
    if t.strides == NULL:  # before DLPack 1.2: C-contiguous. Wraps where finish() refuses the shape
        for i in range(v.ndim - 1, -1, -1):
            v.stride[i] = expected
            expected = <int64_t>(<uint64_t>expected * <uint64_t>v.extent[i])
    v.data = <char*>t.data + t.byte_offset if t.data != NULL else NULL
    finish(v)
    return 0


cdef View from_versioned(DLManagedTensorVersioned* managed, str name):
    """Take ownership of a tensor and describe it."""
    cdef View v = View.__new__(View)
    v.versioned = managed
    v.name = name
    if managed.version.major != 1:  # then even the layout of the rest is unknown
        raise BufferError(f"{name}: exported by DLPack {managed.version.major}, 1 is supported")
    v.writable = managed.flags & DLPACK_FLAG_BITMASK_READ_ONLY == 0
    fill(v, &managed.dl_tensor)
    if managed.flags & DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED:
        v.kind = 0
    return v


cdef View from_legacy(DLManagedTensor* managed, str name):
    """Take ownership of a tensor that cannot say whether it is read-only: treat it so."""
    cdef View v = View.__new__(View)
    v.legacy = managed
    v.name = name
    v.writable = False
    fill(v, &managed.dl_tensor)
    return v


cdef object explained(object error, object obj, str name):
    """Return the error to raise for one that an exporter raised."""
    if isinstance(error, MemoryError):
        return error
    reason = str(error).partition("\n")[0]  # torch appends its C++ stack
    return BufferError(f"{name}: {type(obj).__name__} cannot be exported through DLPack: {reason}")


cdef object export_capsule(object obj, str name):
    """Call the exporter's Python methods."""
    try:
        device = getattr(obj, "__dlpack_device__", None)
        device_type, device_id = device() if device is not None else (kDLCPU, 0)
        device_type, device_id = int(device_type), int(device_id)
    except Exception as error:
        raise explained(error, obj, name) from error
    if not on_host(device_type):  # asked first because an export might wait for a stream
        refuse_device(name, device_type, device_id)
    try:
        try:
            return obj.__dlpack__(max_version=(1, 1))
        except TypeError:  # an exporter older than DLPack 1.0 knows no max_version
            return obj.__dlpack__()
    except Exception as error:
        raise explained(error, obj, name) from error


cdef View from_capsule(object capsule, str name):
    cdef void* pointer
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        pointer = PyCapsule_GetPointer(capsule, "dltensor_versioned")
        PyCapsule_SetName(capsule, "used_dltensor_versioned")
        return from_versioned(<DLManagedTensorVersioned*>pointer, name)
    if PyCapsule_IsValid(capsule, "dltensor"):
        pointer = PyCapsule_GetPointer(capsule, "dltensor")
        PyCapsule_SetName(capsule, "used_dltensor")
        return from_legacy(<DLManagedTensor*>pointer, name)
    raise BufferError(f"{name}: __dlpack__ returned {capsule!r}, which is no unused DLPack capsule")


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


cdef View from_torch(object tensor, str name, Exporter exporter):
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
    fill(v, &borrowed)
    if v.kind & (I8 | I16 | I32 | I64 | U8 | BOOL) == 0:  # whole numbers are never any of this
        check_bits(v, tensor)
    return v


cdef View from_table(object obj, str name, Exporter exporter):
    """Import through the exporter's C function table."""
    cdef DLManagedTensorVersioned* managed = NULL
    try:
        if (exporter.api.managed_tensor_from_py_object_no_sync(<void*>obj, &managed) != 0
                or managed == NULL):
            raise BufferError("it exported nothing")
    except Exception as error:
        raise explained(error, obj, name) from error
    return from_versioned(managed, name)


cdef bint is_masked(object array):
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(array, module.MaskedArray)


cpdef View view(object obj, str name):
    """Return a view of an array in CPU memory.

    Parameters
    ----------
    obj : numpy.ndarray or DLPack exporter
        The array. Read-only arrays are accepted; nothing is copied.
    name : str
        The argument's name, for error messages.

    Returns
    -------
    View
        The array's memory.

    Raises
    ------
    TypeError
        If the object is no array, or its element type has no DLPack equivalent.
    BufferError
        If its memory cannot be used from here: another device, autograd, misaligned.
    ValueError
        If it has too many dimensions, or strides that are no whole numbers of elements.
    """
    cdef Exporter exporter
    if cnp.PyArray_CheckExact(obj):
        return from_numpy(<cnp.ndarray>obj, name)
    exporter = exporter_of(type(obj))
    if cnp.PyArray_Check(obj):
        if is_masked(obj):
            raise TypeError(f"{name}: masked arrays are not supported; fill the masked elements")
        return from_numpy(<cnp.ndarray>obj, name)
    if exporter.api == NULL and not exporter.has_dlpack:
        raise TypeError(
            f"{name}: expected an array (NumPy or any DLPack tensor), got {type(obj).__name__}")
    if exporter.api == NULL:
        return from_capsule(export_capsule(obj, name), name)
    if exporter.torch_like:
        return from_torch(obj, name, exporter)
    return from_table(obj, name, exporter)
