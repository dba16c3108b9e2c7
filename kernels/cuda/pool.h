// Memory in the order of a stream, from a pool of this library's own on each device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace mpembed {
namespace cuda {

// On the thread's device. Where that has no pools, this allocates at once.
cudaError_t pool_allocate(void** out, size_t bytes, cudaStream_t stream);
// Where the device has no pools, this waits for the stream.
cudaError_t pool_free(void* memory, cudaStream_t stream);

}  // namespace cuda
}  // namespace mpembed
