# How tracemalloc learns of memory that is not Python's.

from libc.stdint cimport uintptr_t

cdef extern from *:
    """
    #include <cstddef>
    #include <cstdint>

    // Python 3.11 declares these without C linkage; in a namespace of their own that does no harm.
    namespace tracing {
    extern "C" int PyTraceMalloc_Track(unsigned int domain, std::uintptr_t ptr, std::size_t size);
    extern "C" int PyTraceMalloc_Untrack(unsigned int domain, std::uintptr_t ptr);
    }
    enum { TRACE_DOMAIN = 0x6D7065 };  // tracemalloc lists these arrays under this domain
    """
    int trace "tracing::PyTraceMalloc_Track" (
        unsigned int domain, uintptr_t ptr, size_t size) noexcept nogil
    int untrace "tracing::PyTraceMalloc_Untrack" (
        unsigned int domain, uintptr_t ptr) noexcept nogil
    enum:
        TRACE_DOMAIN
