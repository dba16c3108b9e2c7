"""Whole kernels through the C API, of any backend: groups of tables, batches, their lookups.

Arrays come in as `View` objects (checked by the Python layer), or as arrays of the storage. Each
call names the stream it goes to, and with it the device, which is the thread's while its kernel is
launched: whoever calls need not have set it. The GIL is released around every kernel.
"""

cimport cython
cimport numpy as cnp
from libc.stdint cimport (
    INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t)
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdlib cimport calloc, free
from libcpp.vector cimport vector

import numpy as np

from mpembed._bindings.api cimport *
from mpembed._bindings.device cimport (
    CallLock, CallOrder, Device, Memory, Stream, borrow, download, give_back_deferred, memory_for,
    upload)
from mpembed._bindings.launch cimport Outcome, call, launch
from mpembed._bindings.tensor cimport Tensor
from mpembed._bindings.view cimport BF16, F16, F32, View

cnp.import_array()

cdef extern from *:
    """
    #include "mpembed/registry.h"
    #define MPE_NAME3(id, name, type) #name,
    #define MPE_NAME2(id, name) #name,
    static const char* const mpe_names_formats[] = {MPE_FORMATS(MPE_NAME3) nullptr};
    static const char* const mpe_names_optimizers[] = {MPE_OPTIMIZERS(MPE_NAME3) nullptr};
    static const char* const mpe_names_policies[] = {MPE_POLICIES(MPE_NAME3) nullptr};
    static const char* const mpe_names_poolings[] = {MPE_POOLINGS(MPE_NAME2) nullptr};
    static const char* const mpe_names_decays[] = {MPE_WEIGHT_DECAYS(MPE_NAME2) nullptr};
    static const char* const mpe_names_roundings[] = {MPE_ROUNDINGS(MPE_NAME2) nullptr};
    static const char* const mpe_names_inits[] = {MPE_INITS(MPE_NAME2) nullptr};
    static const char* const mpe_names_stats[] = {MPE_STATS(MPE_NAME2) nullptr};
    static const char* const mpe_names_noise[] = {MPE_NOISE_SUMS(MPE_NAME2) nullptr};
    static const char* const mpe_names_states[] = {MPE_STATE_FORMATS(MPE_NAME3) nullptr};
    static const char* const mpe_names_outputs[] = {MPE_OUTPUT_FORMATS(MPE_NAME3) nullptr};
    """
    const char* const mpe_names_formats[]
    const char* const mpe_names_optimizers[]
    const char* const mpe_names_policies[]
    const char* const mpe_names_poolings[]
    const char* const mpe_names_decays[]
    const char* const mpe_names_roundings[]
    const char* const mpe_names_inits[]
    const char* const mpe_names_stats[]
    const char* const mpe_names_noise[]
    const char* const mpe_names_states[]
    const char* const mpe_names_outputs[]

cdef extern from "mpembed/api_types.h" nogil:
    enum:
        MPE_format_fp32
        MPE_format_fp16
        MPE_format_bf16

cdef extern from "mpembed/round.h" namespace "mpembed" nogil:
    uint16_t bfloat_nearest(float)

cdef extern from "mpembed/cache.h" namespace "mpembed" nogil:
    int64_t set_of(uint64_t, int64_t)

BACKEND = PyCapsule_New(<void*>mpe_cpu_backend(), "mpembed.backend", NULL)


cdef dict _names(const char* const* names):
    result = {}
    i = 0
    while names[i] != NULL:
        result[names[i].decode()] = i
        i += 1
    return result


FORMATS = _names(mpe_names_formats)
OPTIMIZERS = _names(mpe_names_optimizers)
POLICIES = _names(mpe_names_policies)
POOLINGS = _names(mpe_names_poolings)
WEIGHT_DECAYS = _names(mpe_names_decays)
ROUNDINGS = _names(mpe_names_roundings)
INITS = _names(mpe_names_inits)
STATS = list(_names(mpe_names_stats))
NOISE_SUMS = list(_names(mpe_names_noise))
STATE_FORMATS = {name: n for name, n in FORMATS.items() if name in _names(mpe_names_states)}
OUTPUT_FORMATS = {name: n for name, n in FORMATS.items() if name in _names(mpe_names_outputs)}
LEVEL = mpe_cpu_backend().level.decode()


def row_bytes(int precision, int64_t dim):
    return mpe_row_bytes(precision, dim)


def code_bytes(int precision, int64_t dim):
    return mpe_code_bytes(precision, dim)


def optimizer_states(int optimizer):
    """The (name, shape, initial value) of each of an optimizer's states."""
    return [(mpe_state_name(optimizer, i).decode(), mpe_state_shape(optimizer, i),
             mpe_state_initial(optimizer, i)) for i in range(mpe_num_states(optimizer))]


def parameter_names(int optimizer):
    """The names of an optimizer's parameters, in order."""
    cdef const char* name
    names = []
    for i in range(<int>MPE_MAX_PARAMETERS):
        name = mpe_parameter_name(optimizer, i)
        if name == NULL:
            break
        names.append(name.decode())
    return names


def slot_floats(int optimizer, int64_t dim):
    """FP32 values of a cache slot's row and states of a value an element; -1: frozen."""
    return mpe_slot_floats(optimizer, dim)


def slot_values(int optimizer):
    """A cache slot's states of a value a row; -1: frozen."""
    return mpe_slot_values(optimizer)


def policy_has_sketch(int policy):
    return bool(mpe_policy_has_sketch(policy))


def bf16_bits(float value):
    """The bits of a value in BF16, rounded to nearest even."""
    return bfloat_nearest(value)


def get_num_threads():
    return mpe_get_num_threads()


def set_num_threads(int n):
    mpe_set_num_threads(n)


def invalid_variable():
    """The name of a variable of the environment whose value is not known, or None."""
    cdef const char* name = mpe_invalid_variable()
    return None if name == NULL else name.decode()


cdef inline char* at(Memory memory, int64_t offset) noexcept:
    return <char*>memory.data + offset


cdef void* _address(object array) except? NULL:
    """Address of a View, Tensor or NumPy array, NULL for None."""
    if array is None:
        return NULL
    if isinstance(array, View):
        return (<View>array).data
    if isinstance(array, Tensor):
        return (<Tensor>array).data
    return cnp.PyArray_DATA(array)


def host_copy(View view, Stream on, bint always=False):
    """Return the values of a contiguous array in the host's memory; a device is waited for.

    On the CPU it is no copy unless `always`. BF16 becomes its bits.
    """
    if on.device.synchronous and not always:
        return np.asarray(view)
    array = np.empty(view.shape, np.uint16 if view.kind == BF16 else np.dtype(view.dtype))
    if array.size:
        download(on, cnp.PyArray_DATA(array), view.data, array.nbytes)
    return array


include "kernels/batch.pxi"
include "kernels/state.pxi"
include "kernels/rules.pxi"
include "kernels/group.pxi"
include "kernels/step.pxi"
include "kernels/opened_batch.pxi"
include "kernels/keys.pxi"
include "kernels/ops.pxi"
include "kernels/own.pxi"
