"""What kernels see of an array."""

cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t

from mpembed._bindings.dlpack_c cimport (
    DLDataType, DLDevice, DLManagedTensor, DLManagedTensorVersioned)

cdef enum:
    MAX_NDIM = 8


# Element types as bits, so that a set of them is one number.
cdef enum:
    F32 = 1 << 0
    F16 = 1 << 1
    BF16 = 1 << 2
    F64 = 1 << 3
    I8 = 1 << 4
    I16 = 1 << 5
    I32 = 1 << 6
    I64 = 1 << 7
    U8 = 1 << 8
    U16 = 1 << 9
    U32 = 1 << 10
    U64 = 1 << 11
    BOOL = 1 << 12


@cython.final
cdef class View:
    """One array's memory; the exporter keeps it alive while this object lives.

    `refuse_moved` says whether the exporter has kept it where it was.
    """

    cdef DLManagedTensorVersioned* versioned
    cdef DLManagedTensor* legacy
    cdef object owner
    cdef object storage  # of a tensor of torch's, which it may give up for another one
    cdef readonly str name
    cdef void* data  # the first element; may be NULL if there is none
    cdef readonly int ndim
    cdef int64_t extent[MAX_NDIM]
    cdef int64_t stride[MAX_NDIM]  # in elements; where extent < 2, what a C-contiguous array has
    cdef readonly int64_t size  # elements
    cdef unsigned int kind  # one of the bits above; 0 for every other type
    cdef DLDataType type
    cdef DLDevice device
    cdef readonly bint writable
    cdef readonly bint contiguous


cdef int too_many_dimensions(str name, int64_t ndim) except -1
cdef bint reads_on_host(int64_t device_type) noexcept
cdef int finish(View v) except -1
cdef View from_numpy(cnp.ndarray a, str name)
cpdef int require(
    View v, unsigned int dtypes, int ndim=*, tuple shape=*, bint contiguous=*, bint writable=*
) except -1
