// Copies from the host's pageable memory that are done with it when they return.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace mpembed {
namespace cuda {

// Whether the device might read this memory after an asynchronous copy from it has returned: where
// the device reads the host's page tables, the runtime need not stage the bytes.
bool must_be_staged(const void* from);

// Through pinned memory. Waits where all of it is still being read.
cudaError_t copy_staged(void* to, const void* from, size_t bytes, cudaStream_t stream);

}  // namespace cuda
}  // namespace mpembed
