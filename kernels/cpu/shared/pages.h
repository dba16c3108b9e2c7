// Memory that a program keeps: what `allocate` of the CPU backend hands out.
#pragma once

#include <cstddef>

namespace mpembed::cpu {

// At a cache line and not initialised; from MPE_MAPPED_BYTES on at a multiple of 2 MiB and zero.
// Null if there is none.
void* allocate_pages(std::size_t bytes) noexcept;
void release_pages(void* p) noexcept;  // null is allowed

}  // namespace mpembed::cpu
