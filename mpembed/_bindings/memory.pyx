"""Arrays for tables, caches and optimizer state, on huge pages where they are large."""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uintptr_t
from libcpp.atomic cimport atomic

from mpembed._bindings.api cimport (
    MPE_MAPPED_BYTES, MPE_OK, MPE_PLACEMENT_HOST, mpe_backend, mpe_status)
from mpembed._bindings.tracing cimport TRACE_DOMAIN, trace, untrace

import math
import operator
import os

import numpy as np

from mpembed._bindings import kernels

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        type subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims,
        const cnp.npy_intp* strides, void* data, int flags, object obj)

cdef object MAX_BYTES = 1 << 62
cdef size_t LINE = 64
cdef size_t PAGE = os.sysconf("SC_PAGE_SIZE")

cdef const mpe_backend* cpu = <const mpe_backend*>PyCapsule_GetPointer(
    kernels.BACKEND, "mpembed.backend")
cdef atomic[int64_t] allocated  # by arrays that are alive


cdef size_t reserved_size(size_t size) noexcept:
    """Return what a request really takes; sizes are below MAX_BYTES, so that nothing overflows."""
    cdef size_t unit = LINE if size < <size_t>MPE_MAPPED_BYTES else PAGE
    return (max(size, <size_t>1) + unit - 1) // unit * unit


cdef class _Block:
    """Owns the memory of one array; the array's base."""

    cdef void* data
    cdef size_t size

    def __dealloc__(self):
        if self.data == NULL:
            return
        untrace(TRACE_DOMAIN, <uintptr_t>self.data)
        allocated.fetch_sub(self.size)
        with nogil:  # unmapping gigabytes takes a while
            cpu.release(self.data, MPE_PLACEMENT_HOST)


cdef tuple _dimensions(shape):
    try:
        dims = (operator.index(shape),)
    except TypeError:
        dims = tuple(operator.index(n) for n in shape)
    if len(dims) > 32:
        raise ValueError(f"shape {dims} has {len(dims)} dimensions, at most 32 are possible")
    if any(n < 0 for n in dims):
        raise ValueError(f"shape {dims} has a negative dimension")
    return dims


cdef object _allocate(shape, dtype, bint zero):
    cdef cnp.npy_intp dims[32]
    cdef _Block block = _Block.__new__(_Block)
    cdef cnp.dtype descr = np.dtype(dtype)
    cdef tuple lengths = _dimensions(shape)
    cdef mpe_status status
    if descr.hasobject or descr.itemsize == 0:
        raise TypeError(f"dtype {descr} has no fixed-size plain elements")
    if descr.subdtype is not None:
        raise TypeError(f"dtype {descr} is itself an array: put its shape into `shape`")
    # Zeros count as ones here: NumPy's strides must not overflow either.
    if math.prod([n or 1 for n in lengths]) * descr.itemsize >= MAX_BYTES:
        raise MemoryError(f"shape {lengths} of dtype {descr} exceeds the address space")
    requested = math.prod(lengths) * descr.itemsize
    block.size = reserved_size(requested)
    with nogil:
        status = cpu.allocate(block.size, MPE_PLACEMENT_HOST, &block.data)
        if status == MPE_OK and zero and block.size < <size_t>MPE_MAPPED_BYTES:
            status = cpu.fill(block.data, 0, block.size, NULL)
    if status != MPE_OK:
        raise MemoryError(
            f"cannot allocate {requested} bytes for an array of shape {lengths} and dtype {descr}")
    allocated.fetch_add(block.size)
    trace(TRACE_DOMAIN, <uintptr_t>block.data, block.size)
    for i, n in enumerate(lengths):
        dims[i] = n
    Py_INCREF(descr)  # PyArray_NewFromDescr takes over a reference
    array = PyArray_NewFromDescr(
        cnp.ndarray, descr, <int>len(lengths), dims, NULL, block.data,
        cnp.NPY_ARRAY_CARRAY, None)
    cnp.set_array_base(array, block)
    return array


def empty(shape, dtype):
    """Return a new array, its elements not initialised.

    From 1 MiB on an array is a mapping of its own, aligned to 2 MiB and advised to use huge pages;
    smaller ones are aligned to 64 bytes. The memory goes back when the array and all its views die.

    Parameters
    ----------
    shape : int or sequence of int
        Lengths of the dimensions; zeros are allowed.
    dtype : dtype-like
        Element type, without Python objects.

    Returns
    -------
    numpy.ndarray
        C-contiguous and writable.

    Raises
    ------
    MemoryError
        If the memory cannot be had; the message states the size.
    """
    return _allocate(shape, dtype, False)


def zeros(shape, dtype):
    """Return a new array of zeros: see `empty`.

    Parameters
    ----------
    shape : int or sequence of int
        Lengths of the dimensions; zeros are allowed.
    dtype : dtype-like
        Element type, without Python objects.

    Returns
    -------
    numpy.ndarray
        C-contiguous and writable.

    Raises
    ------
    MemoryError
        If the memory cannot be had; the message states the size.
    """
    return _allocate(shape, dtype, True)


def allocated_bytes():
    """Return the bytes that living arrays of `empty` and `zeros` take.

    Returns
    -------
    int
        The sum over all of them, each rounded up to pages from 1 MiB on, else to 64 bytes. The
        header of as much, a page or 64 bytes, that lies before each is not counted.
    """
    return allocated.load()
