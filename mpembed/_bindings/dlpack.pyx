"""Import of arrays: NumPy directly, everything else through DLPack.

`on` is the stream of the call that an array is meant for; None is the CPU's.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName

from mpembed._bindings.device cimport Stream
from mpembed._bindings.dlpack_c cimport (
    DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED, DLPACK_FLAG_BITMASK_READ_ONLY, DLManagedTensor,
    DLManagedTensorVersioned, DLPackExchangeAPI, DLPackExchangeAPIHeader, DLTensor, kDLComplex,
    kDLCPU, kDLCUDA, kDLCUDAHost, kDLCUDAManaged)
from mpembed._bindings.tensor cimport Tensor, view_of
from mpembed._bindings.view cimport (
    BOOL, I8, I16, I32, I64, MAX_NDIM, U8, View, finish, from_numpy, reads_on_host,
    too_many_dimensions)

import sys
from collections.abc import Mapping

cnp.import_array()

cdef dict DEVICES = {
    2: "cuda", 3: "cuda-host",
    4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda-managed", 14: "oneapi",
    15: "webgpu",
}


cdef int64_t MOST = (<int64_t>1 << 31) - 1  # DLPack's numbers of devices are int32


cdef str device_name(int64_t device_type, int64_t device_id):
    if device_type == kDLCPU:
        return "the CPU"
    return f"{DEVICES.get(device_type, f'device type {device_type}')}:{device_id}"


cdef bint for_cpu(Stream on) noexcept:
    """Whether the call's kernels are the CPU's."""
    return on is None or on.device.synchronous


cdef bint reachable(int64_t device_type, int64_t device_id, Stream on) noexcept:
    """Whether the kernels of the call can read the memory."""
    if for_cpu(on):
        return reads_on_host(device_type)
    if device_type == kDLCUDA:
        return device_id == on.device.index
    return device_type == kDLCUDAHost or device_type == kDLCUDAManaged


cdef int refuse_device(str name, int64_t device_type, int64_t device_id, Stream on) except -1:
    device = device_name(device_type, device_id)
    if for_cpu(on):
        raise BufferError(f"{name}: is on {device}, but an array in CPU memory is needed")
    raise BufferError(
        f"{name}: is on {device}, but an array on {on.device.name} is needed "
        "(mpembed.to_device copies)")


cdef int fill(View v, const DLTensor* t, Stream on) except -1:
    """Take over what a tensor says of itself."""
    cdef int i
    cdef int64_t expected = 1
    if not reachable(t.device.device_type, t.device.device_id, on):
        refuse_device(v.name, t.device.device_type, t.device.device_id, on)
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


cdef View from_versioned(DLManagedTensorVersioned* managed, str name, Stream on):
    """Take ownership of a tensor and describe it."""
    cdef View v = View.__new__(View)
    v.versioned = managed
    v.name = name
    if managed.version.major != 1:  # then even the layout of the rest is unknown
        raise BufferError(f"{name}: exported by DLPack {managed.version.major}, 1 is supported")
    v.writable = managed.flags & DLPACK_FLAG_BITMASK_READ_ONLY == 0
    fill(v, &managed.dl_tensor, on)
    if managed.flags & DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED:
        v.kind = 0
    return v


cdef View from_legacy(DLManagedTensor* managed, str name, Stream on):
    """Take ownership of a tensor that cannot say whether it is read-only: treat it so."""
    cdef View v = View.__new__(View)
    v.legacy = managed
    v.name = name
    v.writable = False
    fill(v, &managed.dl_tensor, on)
    return v


cdef object explained(object error, object obj, str name):
    """Return the error to raise for one that an exporter raised."""
    if isinstance(error, MemoryError):
        return error
    reason = str(error).partition("\n")[0]  # torch appends its C++ stack
    return BufferError(f"{name}: {type(obj).__name__} cannot be exported through DLPack: {reason}")


cdef tuple device_of(object obj, str name):
    try:
        device = getattr(obj, "__dlpack_device__", None)
        device_type, device_id = device() if device is not None else (kDLCPU, 0)
        device_type, device_id = int(device_type), int(device_id)
    except Exception as error:
        raise explained(error, obj, name) from error
    if not -MOST <= device_type <= MOST or not -MOST <= device_id <= MOST:
        raise BufferError(
            f"{name}: {type(obj).__name__}.__dlpack_device__ gives ({device_type}, {device_id}), "
            "which is no device")
    return device_type, device_id


cdef object export_capsule(object obj, str name, Stream on):
    """Call the exporter's Python methods."""
    cdef dict options = {}
    device_type, device_id = device_of(obj, name)
    if not reachable(device_type, device_id, on):  # asked first: an export might wait for a stream
        refuse_device(name, device_type, device_id, on)
    if not reads_on_host(device_type):
        # A graph runs after what the stream of its launch has been given: nothing to order now.
        options["stream"] = on.number if on.capture == 0 else -1
    try:
        try:
            return obj.__dlpack__(max_version=(1, 1), **options)
        except TypeError:  # an exporter older than DLPack 1.0 knows no max_version
            return obj.__dlpack__(**options)
    except Exception as error:
        raise explained(error, obj, name) from error


cdef View from_capsule(object capsule, str name, Stream on):
    cdef void* pointer
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        pointer = PyCapsule_GetPointer(capsule, "dltensor_versioned")
        PyCapsule_SetName(capsule, "used_dltensor_versioned")
        return from_versioned(<DLManagedTensorVersioned*>pointer, name, on)
    if PyCapsule_IsValid(capsule, "dltensor"):
        pointer = PyCapsule_GetPointer(capsule, "dltensor")
        PyCapsule_SetName(capsule, "used_dltensor")
        return from_legacy(<DLManagedTensor*>pointer, name, on)
    raise BufferError(
        f"{name}: __dlpack__ returned {capsule!r}, which is not an unused DLPack capsule")


include "dlpack/exporters.pxi"


cdef View from_tensor(Tensor tensor, str name, Stream on):
    """Lend one of our own, ready on the call's stream."""
    cdef View v = view_of(tensor, name)
    if not reachable(v.device.device_type, v.device.device_id, on):
        refuse_device(name, v.device.device_type, v.device.device_id, on)
    if for_cpu(on):
        on = tensor.memory.device.stream(None)
        on.wait_for(tensor.memory.writer())
        on.synchronize("waiting for a tensor in host memory")
    else:
        tensor.readable_on(on)
        tensor.memory.written = on  # which may write it
    return v


cdef View from_view(View v, str name, Stream on):
    """Take one that a program's handler made over its buffer, under the argument's name."""
    if not reachable(v.device.device_type, v.device.device_id, on):
        refuse_device(name, v.device.device_type, v.device.device_id, on)
    v.name = name
    return v


cdef bint is_masked(object array):
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(array, module.MaskedArray)


def device_pair(object obj, str name):
    """Return the DLPack (device type, device id) of an array; TypeError if it is none."""
    cdef DLTensor borrowed
    cdef Exporter exporter
    if cnp.PyArray_Check(obj):
        return kDLCPU, 0
    exporter = exporter_of(type(obj))
    if exporter.torch_like:
        try:
            if exporter.api.dltensor_from_py_object_no_sync(<void*>obj, &borrowed) != 0:
                raise BufferError("it exported nothing")
        except Exception as error:
            raise explained(error, obj, name) from error
        return borrowed.device.device_type, borrowed.device.device_id
    if exporter.api == NULL and not exporter.has_dlpack:
        raise no_array(obj, name)
    return device_of(obj, name)


cdef object no_array(object obj, str name):
    return TypeError(
        f"{name}: expected an array (NumPy or any DLPack tensor), got {type(obj).__name__}")


cpdef View view(object obj, str name, Stream on=None):
    """Return a view of an array.

    Parameters
    ----------
    obj : numpy.ndarray or DLPack exporter
        The array. Read-only arrays are accepted; nothing is copied.
    name : str
        The argument's name, for error messages.
    on : Stream, optional
        The stream of the call that uses it, where its values are ready; its device must reach the
        memory. None is the CPU's. Torch's tensors are taken as they are: their own stream has to
        be the same, or ordered by the caller.

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
        if not for_cpu(on):
            refuse_device(name, kDLCPU, 0, on)
        return from_numpy(<cnp.ndarray>obj, name)
    if type(obj) is Tensor:
        return from_tensor(<Tensor>obj, name, on)
    if type(obj) is View:
        return from_view(<View>obj, name, on)
    exporter = exporter_of(type(obj))
    if cnp.PyArray_Check(obj):
        if is_masked(obj):
            raise TypeError(f"{name}: masked arrays are not supported; fill the masked elements")
        if not for_cpu(on):
            refuse_device(name, kDLCPU, 0, on)
        return from_numpy(<cnp.ndarray>obj, name)
    if exporter.api == NULL and not exporter.has_dlpack:
        raise no_array(obj, name)
    if exporter.torch_like:
        return from_torch(obj, name, exporter, on)
    # A table that is not torch's gives no order of streams; the methods do.
    if exporter.api == NULL or (exporter.has_dlpack and not for_cpu(on)):
        return from_capsule(export_capsule(obj, name, on), name, on)
    return from_table(obj, name, exporter, on)


def refuse_moved(list views):
    """Raise BufferError where an array's memory is not what it was when its view was made.

    Call this between the last `view` of a call and the first use of the memory: making a view runs
    code of the exporter's, which can resize or replace arrays that were taken before. `views` may
    hold None.
    """
    cdef View v
    for v in views:
        if v is not None and has_moved(v):
            raise BufferError(
                f"{v.name}: its memory was moved or freed while the arguments of this call were "
                "taken; do not resize arrays in an exporter's __dlpack__")
