"""The CPU backend behind the C door: groups of tables, batches and their lookups.

Arrays come in as `View` objects (checked by the Python layer) or as NumPy arrays that this module
made. The GIL is released around every kernel.
"""

cimport numpy as cnp
from libc.stdint cimport (
    INT32_MAX, INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t)
from libc.stdlib cimport calloc, free

import numpy as np

from mpembed._api cimport *
from mpembed._view cimport View

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
    """
    const char* const mpe_names_formats[]
    const char* const mpe_names_optimizers[]
    const char* const mpe_names_policies[]
    const char* const mpe_names_poolings[]
    const char* const mpe_names_decays[]
    const char* const mpe_names_roundings[]
    const char* const mpe_names_inits[]
    const char* const mpe_names_stats[]

cdef extern from "cpu/parallel.h" namespace "mpe" nogil:
    bint set_threads(int)
    bint threads_env_valid()

cdef const mpe_backend* KERNELS = mpe_cpu_backend()


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
LEVEL = KERNELS.level.decode()


def row_bytes(int precision, int64_t dim):
    return mpe_row_bytes(precision, dim)


def code_bytes(int precision, int64_t dim):
    return mpe_code_bytes(precision, dim)


def state_shape(int optimizer):
    return mpe_state_shape(optimizer)


def policy_has_sketch(int policy):
    return bool(mpe_policy_has_sketch(policy))


def get_num_threads():
    return mpe_get_num_threads()


def set_num_threads(int n):
    return set_threads(n)


def threads_variable_valid():
    return threads_env_valid()


cdef inline void* _data(object array):
    """Address of a NumPy array that the caller keeps alive."""
    return cnp.PyArray_DATA(array)


cdef void* _address(object array) except? NULL:
    """Address of a View or NumPy array, NULL for None."""
    if array is None:
        return NULL
    if isinstance(array, View):
        return (<View>array).data
    return cnp.PyArray_DATA(array)


cdef int _check(mpe_status status, str what) except -1:
    if status == MPE_ERR_MEMORY:
        raise MemoryError(f"{what}: not enough memory for the workspace")
    if status != MPE_OK:
        raise RuntimeError(f"{what}: unexpected status {<int>status}")
    return 0


include "_core_batch.pxi"
include "_core_group.pxi"
include "_core_ops.pxi"
