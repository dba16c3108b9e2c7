// Memory that kernels work in.
//
// A step borrows a few megabytes and returns them. Memory that is freed to the system comes back as
// pages that it clears and maps again, which takes longer than much of the work done in them.
#pragma once

#include <cstddef>

namespace mpembed::cpu {

constexpr std::size_t kKeptBytes = std::size_t{64} << 20;  // the most that is kept for later calls

// Uninitialised; aligned to a cache line if it is more than a few pages. Null if there is no
// memory.
void* acquire_workspace(std::size_t bytes) noexcept;
void release_workspace(void* p) noexcept;  // p may be null

// How many bytes are kept at the moment.
std::size_t kept_workspace() noexcept;

}  // namespace mpembed::cpu
