// CUB's device-wide algorithms with workspace in the order of the stream.
#pragma once

#include <cub/cub.cuh>

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

// Calls run(temporary, bytes) twice, as CUB wants it: for the size, then for the work.
template <class Run>
mpe_status with_temporary(void* stream, const char* operation, Run run) {
  size_t bytes = 0;
  MPE_TRY(check(run(nullptr, bytes), operation));
  Workspace<char> temporary(stream);
  MPE_TRY(temporary.take(static_cast<int64_t>(bytes), operation));
  return check(run(temporary.get(), bytes), operation);
}

// Stable, by the low `bits` bits; the result lies in the buffers' Current().
template <class Key, class Value>
mpe_status sort_pairs(cub::DoubleBuffer<Key>& keys, cub::DoubleBuffer<Value>& values, int64_t n,
                      int bits, void* stream, const char* operation) {
  if (bits == 0) return MPE_OK;
  return with_temporary(stream, operation, [&](void* temporary, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, values, n, 0, bits,
                                           stream_of(stream));
  });
}

}  // namespace cuda
}  // namespace mpembed
