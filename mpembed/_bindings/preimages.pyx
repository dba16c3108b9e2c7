"""Rows as they were at a moment, read in chunks while the kernels write them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libcpp.vector cimport vector

import numpy as np

from mpembed._bindings.api cimport MPE_MAX_STATES, mpe_preimage_log, mpe_preimages

cdef extern from "mpembed/preimages.h" namespace "mpembed" nogil:
    cdef cppclass PreimageReader:
        PreimageReader(mpe_preimage_log&) except +
        void add(mpe_preimages&, int64_t, int64_t) except +
        void read(const mpe_preimages&, int64_t, uint8_t* const*) except +
    void keep_preimage(mpe_preimages&, int64_t)

cdef extern from *:
    """
    #include <sys/mman.h>

    // What kernels add to meanwhile.
    static int64_t mpe_used(const mpe_preimage_log* log) {
        return __atomic_load_n(&log->used, __ATOMIC_RELAXED);
    }
    // Lets the system find memory for whole pages that begin here, and clear it.
    static void mpe_populate(const uint8_t* begin, int64_t bytes) {
    #if defined(__linux__)
      const int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older systems do not know
      const uintptr_t page = reinterpret_cast<uintptr_t>(begin) & ~uintptr_t{4095};
      madvise(reinterpret_cast<void*>(page), static_cast<size_t>(bytes), kPopulateWrite);
    #else
      (void)begin, (void)bytes;
    #endif
    }
    """
    int64_t mpe_used(const mpe_preimage_log*) noexcept nogil
    void mpe_populate(const uint8_t*, int64_t) noexcept nogil

cdef int64_t HUGE_PAGE = 1 << 21


cdef class PreimageLog:
    """Where kernels copy rows before they write them; `reserve` comes after its `Preimages`."""

    cdef mpe_preimage_log fields
    cdef PreimageReader* reader
    cdef object data
    cdef int64_t populated  # bytes

    def __cinit__(self):
        self.reader = new PreimageReader(self.fields)

    def __dealloc__(self):
        del self.reader

    def reserve(self, int64_t capacity):
        """Have room for so many bytes, which are only address space until they are used."""
        self.data = np.zeros(capacity, np.uint8)
        self.fields.data = <uint8_t*><uintptr_t>self.data.ctypes.data
        self.fields.capacity = capacity

    @property
    def used(self):
        """Bytes that kernels have taken."""
        return mpe_used(&self.fields)

    @property
    def nbytes(self):
        """Bytes of memory."""
        return max(self.populated, min(mpe_used(&self.fields), self.fields.capacity))

    def populate(self, int64_t ahead):
        """Let the system clear so many bytes before kernels take them; the reader's thread."""
        cdef int64_t begin = self.populated
        cdef int64_t end = min(mpe_used(&self.fields) + ahead, self.fields.capacity)
        end -= end % HUGE_PAGE
        if end > begin:
            with nogil:
                mpe_populate(self.fields.data + begin, end - begin)
            self.populated = end


cdef class Preimages:
    """What rows held when this was made; kernels that are given `address` keep it.

    A kernel copies a row into the log before it first writes it, unless the row has been read.

    Parameters
    ----------
    log : PreimageLog
        The log.
    spans : list of uint8 arrays (E, bytes)
        The memory of E rows, each dense.
    chunk_rows : int
        Rows that are read at a time, a multiple of 32.
    """

    cdef mpe_preimages fields
    cdef PreimageLog log
    cdef readonly int64_t num_rows, chunk_rows
    cdef object kept
    cdef list spans

    def __cinit__(self, PreimageLog log, list spans, int64_t chunk_rows):
        if not 0 < len(spans) <= 1 + MPE_MAX_STATES:
            raise ValueError("a row lies in one place at least and in a few at most")
        if chunk_rows <= 0 or chunk_rows % 32 != 0:
            raise ValueError("a chunk has a multiple of 32 rows")
        self.log, self.spans = log, spans
        self.num_rows, self.chunk_rows = len(spans[0]), chunk_rows
        for i, span in enumerate(spans):
            if span.dtype != np.uint8 or len(span) != self.num_rows or not span.flags.c_contiguous:
                raise ValueError("a span is a dense array of bytes, with all rows")
            self.fields.spans[i].data = <const uint8_t*><uintptr_t>span.ctypes.data
            self.fields.spans[i].bytes = span.shape[1]
        self.fields.num_spans = len(spans)
        self.kept = np.zeros(-(-self.num_rows // 32), np.uint32)
        self.fields.kept = <uint32_t*><uintptr_t>self.kept.ctypes.data
        log.reader.add(self.fields, self.num_rows, chunk_rows)

    @property
    def address(self):
        """What kernels are given; it must live as long as they have it."""
        return <uintptr_t>&self.fields

    @property
    def entry_bytes(self):
        """Bytes that one row takes in the log."""
        return self.fields.entry_bytes

    @property
    def nbytes(self):
        """Bytes of memory, without the log's."""
        return self.kept.nbytes + 8 * -(-self.num_rows // self.chunk_rows)

    @property
    def left(self):
        """The most rows that are neither in the log nor read."""
        ones = int(np.bitwise_count(self.kept).sum())
        return min(self.num_rows, 32 * len(self.kept) - ones)

    def count_left(self, rows):
        """Return how many of some rows, none of them twice, are neither in the log nor read."""
        bits = self.kept[rows // 32] >> (rows % 32).astype(np.uint32)
        return len(rows) - int(np.count_nonzero(bits & np.uint32(1)))

    def keep(self, const int64_t[::1] rows):
        """Copy rows into the log, as kernels do, for others than kernels that will write them."""
        for i in range(len(rows)):
            if not 0 <= rows[i] < self.num_rows:
                raise IndexError(f"there is no row {rows[i]}")
        for i in range(len(rows)):
            keep_preimage(self.fields, rows[i])

    def read(self, int64_t chunk, list outs):
        """Copy a chunk's rows as they were into uint8 arrays (chunk_rows, bytes), one a span.

        Each chunk is read once, by the log's one reader. The interpreter's lock is free meanwhile.

        Raises
        ------
        RuntimeError
            If the log was full.
        """
        cdef vector[uint8_t*] to
        for out, span in zip(outs, self.spans, strict=True):
            if out.shape != (self.chunk_rows, span.shape[1]) or not out.flags.c_contiguous:
                raise ValueError("out has room for a chunk")
            to.push_back(<uint8_t*><uintptr_t>out.ctypes.data)
        if not 0 <= chunk * self.chunk_rows < self.num_rows:
            raise IndexError("there is no such chunk")
        with nogil:
            self.log.reader.read(self.fields, chunk, to.data())
