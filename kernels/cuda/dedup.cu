// The unique rows of a batch, ascending, each with the positions of its lookups in input order: a
// stable radix sort of the bits in use, then a selection of each row's first lookup. The count
// stays on the device.
#include <thrust/iterator/counting_iterator.h>
#include <cub/cub.cuh>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/radix_sort.cuh"

namespace mpembed {
namespace cuda {
namespace {

template <class Key>
__global__ void load_kernel(const uint64_t* keys, int64_t n, Key limit, Key* out,
                            int32_t* positions) {
  const int64_t i = thread_index();
  if (i >= n) return;
  // Dropped keys become `limit`, one past the largest key, so that fewer bits are sorted.
  out[i] = keys[i] < limit ? static_cast<Key>(keys[i]) : limit;
  positions[i] = static_cast<int32_t>(i);
}

template <class Key>
struct IsHead {
  const Key* sorted;
  Key limit;

  __host__ __device__ bool operator()(int64_t i) const {
    return sorted[i] < limit && (i == 0 || sorted[i] != sorted[i - 1]);
  }
};

template <class Key>
__global__ void segment_kernel(const Key* sorted, const int32_t* positions, int64_t n, Key limit,
                               mpe_unique out) {
  const int64_t i = thread_index();
  if (i >= n) return;
  out.positions[i] = positions[i];
  const int64_t count = *out.count;
  if (i < count) out.rows[i] = sorted[out.starts[i]];
  if (i == 0) {
    out.starts[count] = first_at_least(
        n, 1, [&](int64_t j) { return static_cast<int64_t>(sorted[j] >= limit ? 1 : 0); });
  }
}

__global__ void empty_kernel(mpe_unique out) {
  *out.count = 0;
  out.starts[0] = 0;
}

template <class Key>
mpe_status dedup_as(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out,
                    void* stream) {
  PairSort<Key, int32_t> sort(n, bits_for(limit + 1), stream);
  MPE_TRY(sort.acquire("dedup"));
  const Key bound = static_cast<Key>(limit);
  MPE_TRY(launch("dedup", stream, n, load_kernel<Key>, keys, n, bound, sort.keys(), sort.values()));
  MPE_TRY(sort.run("dedup"));

  const IsHead<Key> is_head{sort.keys(), bound};
  const auto positions = thrust::make_counting_iterator(int64_t{0});
  MPE_TRY(with_temporary(stream, "dedup", [&](void* temporary, size_t& bytes) {
    return cub::DeviceSelect::If(temporary, bytes, positions, out->starts, out->count, n, is_head,
                                 stream_of(stream));
  }));
  return launch("dedup", stream, n, segment_kernel<Key>, sort.keys(), sort.values(), n, bound,
                *out);
}

}  // namespace

mpe_status dedup(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out, void* stream) {
  if (n == 0) return launch_one("dedup", stream, empty_kernel, *out);
  if (limit < UINT32_MAX) return dedup_as<uint32_t>(keys, n, limit, out, stream);
  return dedup_as<uint64_t>(keys, n, limit, out, stream);
}

}  // namespace cuda
}  // namespace mpembed
