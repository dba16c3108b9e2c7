// Memory that kernels work in.
//
// A step borrows a few megabytes and gives them back. Given to the system they would come back as
// pages that it clears and maps anew, which takes longer than much of the work in them.
#pragma once

#include <cstddef>

namespace mpe {

constexpr std::size_t kKeptBytes = std::size_t{64} << 20;  // at most, for calls to come

// Uninitialised; at the start of a cache line where it is more than a few pages. Null if there is
// none.
void* take_workspace(std::size_t bytes) noexcept;
void give_workspace(void* p) noexcept;  // null is allowed

// How much is kept at the moment, in bytes.
std::size_t kept_workspace() noexcept;

}  // namespace mpe
