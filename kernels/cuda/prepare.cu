// Checks a caller's batch and turns a group's share of it into linear row ids.
#include "cuda/group.cuh"
#include "cuda/kernels.h"
#include "cuda/search.cuh"
#include "mpembed/error.h"

namespace mpembed {
namespace cuda {
namespace {

constexpr int64_t kNone = INT64_MAX;

// int32 or int64 values.
struct Integers {
  const void* data;
  int32_t bits;

  __device__ int64_t operator[](int64_t i) const {
    return bits == 32 ? static_cast<int64_t>(static_cast<const int32_t*>(data)[i])
                      : static_cast<const int64_t*>(data)[i];
  }
};

__device__ inline void clear(mpe_error* error) { *error = mpe_error MPE_NO_ERROR; }

__global__ void clear_kernel(mpe_error* error) { clear(error); }

__global__ void check_offsets_kernel(Integers offsets, int64_t bags, int64_t num_indices,
                                     mpe_error* error) {
  const int64_t i = thread_index();
  if (i > bags) return;
  const int64_t value = offsets[i];
  bool bad = i == 0 ? value != 0 : value < offsets[i - 1];
  bad = bad || (i == bags && value != num_indices);
  if (bad) atomic_min64(&error->position, i);
}

__global__ void offsets_found_kernel(Integers offsets, mpe_error* error) {
  if (error->position == kNone) return;
  error->value = offsets[error->position];
  error->count = 1;
  error->status = MPE_ERR_OFFSETS;
}

// The batch of one group; with bad offsets all bags are empty.
struct Share {
  Tables tables;
  Integers indices, offsets;
  const mpe_error* bad;
  int64_t batch_size;
  mpe_lookups out;

  __device__ bool refused() const { return bad != nullptr && bad->status != MPE_OK; }
  __device__ int64_t bags() const { return tables.count * batch_size; }
  __device__ int64_t first_offset(int64_t t) const {
    return offsets[tables.table[t].feature * batch_size];
  }
  __device__ int64_t size_of(int64_t t) const {
    return offsets[(tables.table[t].feature + 1) * batch_size] - first_offset(t);
  }
};

// Inclusive sum over the block's threads, which meet once more before the next one.
__device__ int64_t block_sum(int64_t v, int64_t* warps) {
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int s = 1; s < kWarp; s <<= 1) {
    const int64_t other = __shfl_up_sync(kFullMask, v, s);
    if (lane >= s) v += other;
  }
  if (lane == kWarp - 1) warps[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; ++w) v += warps[w];
  return v;
}

// One block: where each table's lookups begin in the group, its origin, and cleared counts.
__global__ void segments_kernel(Share s, int64_t* starts, mpe_error* error) {
  MPE_SHARED(int64_t, warps, kThreads / kWarp);
  MPE_SHARED(int64_t, total, 1);
  if (threadIdx.x == 0) {
    total[0] = 0;
    clear(error);
  }
  __syncthreads();
  const bool refused = s.refused();
  for (int64_t base = 0; base < s.tables.count; base += kThreads) {
    const int64_t t = base + threadIdx.x;
    const bool here = t < s.tables.count;
    const int64_t size = here && !refused ? s.size_of(t) : 0;
    const int64_t before = total[0];
    const int64_t end = before + block_sum(size, warps);
    if (here) {
      starts[t] = end - size;
      s.out.origins[t] = refused ? 0 : s.first_offset(t);
      s.out.dropped[t] = 0;
    }
    if (threadIdx.x == kThreads - 1) total[0] = end;
    __syncthreads();
  }
}

__global__ void bag_offsets_kernel(Share s, const int64_t* starts) {
  const int64_t i = thread_index();
  if (i == 0) s.out.bag_offsets[0] = 0;
  if (i >= s.bags()) return;
  const int64_t t = i / s.batch_size, b = i % s.batch_size;
  const int64_t end = s.offsets[s.tables.table[t].feature * s.batch_size + b + 1];
  s.out.bag_offsets[i + 1] = s.refused() ? 0 : starts[t] + end - s.out.origins[t];
}

// Lookup p of a bag.
__device__ __forceinline__ void write_key(const Share& s, const int64_t* starts,
                                          const float* weights, mpe_error* error, int64_t p,
                                          int64_t bag) {
  if (bag >= s.bags()) {
    s.out.keys[p] = MPE_DROPPED;
    return;
  }
  const int64_t t = static_cast<uint32_t>(bag) / static_cast<uint32_t>(s.batch_size);
  const mpe_table& table = s.tables.table[t];
  const int64_t i = p - starts[t] + s.out.origins[t];
  const int64_t index = s.indices[i];
  const bool valid = index >= 0 && index < table.num_rows;
  if (!valid) {
    atomic_add64(s.out.dropped + t, 1);
    atomic_min64(&error->position, i);
  }
  s.out.keys[p] = valid ? static_cast<uint64_t>(table.base + index) : MPE_DROPPED;
  s.out.bags[p] = static_cast<int32_t>(bag);
  if (s.out.weights != nullptr) s.out.weights[p] = weights[i];
}

__global__ void keys_kernel(Share s, const int64_t* starts, const float* weights,
                            mpe_error* error) {
  each_place(s.out.bag_offsets + 1, s.bags(), s.out.n,
             [&](int64_t p, int64_t bag) { write_key(s, starts, weights, error, p, bag); });
}

__global__ void index_found_kernel(Share s, int32_t drop, mpe_error* error) {
  const int64_t i = error->position;
  if (i == kNone) return;
  if (drop) {
    clear(error);
    return;
  }
  int64_t count = 0;
  for (int32_t t = 0; t < s.tables.count; ++t) {
    if (i >= s.first_offset(t) && i < s.first_offset(t) + s.size_of(t))
      error->table = s.tables.table[t].table_id;
    count += s.out.dropped[t];
  }
  error->value = s.indices[i];
  error->count = count;
  error->status = MPE_ERR_INDEX;
}

__global__ void discard_kernel(mpe_lookups l, int32_t tables, const mpe_error* errors, int32_t n,
                               mpe_error* sink) {
  const mpe_error found = first_error(errors, n);
  if (found.status == MPE_OK) return;
  const int64_t i = thread_index();
  if (i == 0 && sink->status == MPE_OK) *sink = found;
  if (i < l.n) l.keys[i] = MPE_DROPPED;
  if (i < tables) l.dropped[i] = 0;
  if (i <= tables * l.batch_size) l.bag_offsets[i] = 0;
}

__global__ void count_kernel(Tables tables, mpe_lookups l, mpe_unique u, int32_t unique,
                             int32_t accesses, int32_t dropped) {
  const int64_t t = thread_index();
  if (t >= tables.count) return;
  const mpe_table& table = tables.table[t];
  const int64_t* ends = l.bag_offsets + t * l.batch_size;
  if (accesses) {
    count_stat(table, MPE_stat_accesses, ends[l.batch_size] - ends[0] - l.dropped[t]);
  }
  if (dropped) count_stat(table, MPE_stat_dropped, l.dropped[t]);
  if (!unique) return;
  const auto row = [&](int64_t i) { return static_cast<int64_t>(u.rows[i]); };
  const int64_t first = first_at_least(*u.count, table.base, row);
  const int64_t last = first_at_least(*u.count, table.base + table.num_rows, row);
  count_stat(table, MPE_stat_unique, last - first);
}

__global__ void advance_kernel(uint64_t* step) { ++*step; }

}  // namespace

mpe_status check_offsets(const mpe_batch* b, void* stream, mpe_error* error) {
  const int64_t bags = b->num_features * b->batch_size;
  const Integers offsets{b->offsets, b->offset_bits};
  MPE_TRY(launch_one("check_offsets", stream, clear_kernel, error));
  MPE_TRY(launch("check_offsets", stream, bags + 1, check_offsets_kernel, offsets, bags,
                 b->num_indices, error));
  return launch_one("check_offsets", stream, offsets_found_kernel, offsets, error);
}

mpe_status prepare(const mpe_group* g, const mpe_batch* b, int32_t drop, const mpe_error* offsets,
                   mpe_lookups* out, void* stream, mpe_error* error) {
  const Share share{
      Tables(*g), {b->indices, b->index_bits}, {b->offsets, b->offset_bits}, offsets, b->batch_size,
      *out};
  Workspace<int64_t> starts(stream);
  MPE_TRY(starts.take(g->num_tables, "prepare"));
  MPE_TRY(launch("prepare", stream, kThreads, segments_kernel, share, starts.get(), error));
  const int64_t bags = g->num_tables * b->batch_size;
  MPE_TRY(launch("prepare", stream, bags + 1, bag_offsets_kernel, share, starts.get()));
  MPE_TRY(launch("prepare", stream, threads_of_places(out->n), keys_kernel, share, starts.get(),
                 b->weights, error));
  return launch_one("prepare", stream, index_found_kernel, share, drop, error);
}

mpe_status discard(const mpe_group* g, mpe_lookups* l, const mpe_error* errors, int32_t n,
                   mpe_error* sink, void* stream) {
  int64_t threads = g->num_tables * l->batch_size + 1;
  if (threads < g->num_tables) threads = g->num_tables;
  if (threads < l->n) threads = l->n;
  return launch("discard", stream, threads, discard_kernel, *l, g->num_tables, errors, n, sink);
}

mpe_status count(const mpe_group* g, const mpe_lookups* l, const mpe_unique* unique,
                 int32_t accesses, int32_t dropped, void* stream) {
  const mpe_unique u = unique != nullptr ? *unique : mpe_unique{};
  const int32_t counts_unique = unique != nullptr ? 1 : 0;
  return launch("count", stream, g->num_tables, count_kernel, Tables(*g), *l, u, counts_unique,
                accesses, dropped);
}

mpe_status advance(uint64_t* step, void* stream) {
  return launch_one("advance", stream, advance_kernel, step);
}

}  // namespace cuda
}  // namespace mpembed
