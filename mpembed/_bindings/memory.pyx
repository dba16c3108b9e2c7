"""Arrays for tables, caches and optimizer state, on huge pages where they are large."""

from libc.stdint cimport int64_t, uintptr_t

cimport numpy as cnp
from cpython.ref cimport Py_INCREF

from mpembed._bindings.tracing cimport TRACE_DOMAIN, trace, untrace

import math
import operator

import numpy as np

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        type subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims,
        const cnp.npy_intp* strides, void* data, int flags, object obj)

cdef extern from *:
    """
    #include <atomic>
    #include <cstdint>
    #include <cstdlib>
    #include <cstring>
    #include <sys/mman.h>
    #include <unistd.h>

    namespace {

    constexpr std::size_t kHuge = std::size_t{2} << 20;
    constexpr std::size_t kMapped = std::size_t{1} << 20;  // from here on a mapping of its own
    constexpr std::size_t kAlign = 64;
    std::atomic<std::int64_t> g_allocated{0};

    std::size_t round_up(std::size_t bytes, std::size_t unit) {
      return (bytes + unit - 1) / unit * unit;
    }

    // What a request really takes. Callers keep bytes below 2^62, so that nothing here overflows.
    std::size_t reserved_size(std::size_t bytes) {
      if (bytes < kMapped) return round_up(bytes == 0 ? 1 : bytes, kAlign);
      return round_up(bytes, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
    }

    // A mapping that starts at a multiple of 2 MiB: only whole such pieces become huge pages.
    void* map_huge(std::size_t size) {
      const int access = PROT_READ | PROT_WRITE;
      void* raw = mmap(nullptr, size + kHuge, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (raw == MAP_FAILED) return nullptr;
      char* begin = static_cast<char*>(raw);
      const std::size_t head = round_up(reinterpret_cast<std::uintptr_t>(raw), kHuge) -
                               reinterpret_cast<std::uintptr_t>(raw);
      if (head != 0) munmap(begin, head);
      munmap(begin + head + size, kHuge - head);
    #ifdef MADV_HUGEPAGE
      madvise(begin + head, size, MADV_HUGEPAGE);  // refused where huge pages are off: no harm
    #endif
      return begin + head;
    }

    void* reserve(std::size_t size, bool zero) {
      void* data = nullptr;
      if (size >= kMapped) {
        data = map_huge(size);
      } else if (posix_memalign(&data, kAlign, size) != 0) {
        data = nullptr;
      } else if (zero) {
        std::memset(data, 0, size);
      }
      if (data != nullptr) g_allocated += static_cast<std::int64_t>(size);
      return data;
    }

    void release(void* data, std::size_t size) {
      g_allocated -= static_cast<std::int64_t>(size);
      if (size >= kMapped) {
        munmap(data, size);
      } else {
        std::free(data);
      }
    }

    std::int64_t allocated() { return g_allocated.load(); }

    }  // namespace
    """
    size_t reserved_size(size_t size) noexcept nogil
    void* reserve(size_t size, bint zero) noexcept nogil
    void release(void* data, size_t size) noexcept nogil
    int64_t allocated() noexcept nogil

cdef object MAX_BYTES = 1 << 62


cdef class _Block:
    """Owns the memory of one array; the array's base."""

    cdef void* data
    cdef size_t size

    def __dealloc__(self):
        if self.data == NULL:
            return
        untrace(TRACE_DOMAIN, <uintptr_t>self.data)
        with nogil:  # unmapping gigabytes takes a while
            release(self.data, self.size)


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
        block.data = reserve(block.size, zero)
    if block.data == NULL:
        raise MemoryError(
            f"cannot allocate {requested} bytes for an array of shape {lengths} and dtype {descr}")
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
        The sum over all of them, each rounded up as it really is: to pages from 1 MiB on, else to
        64 bytes.
    """
    return allocated()
