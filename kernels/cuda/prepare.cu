// Checks a caller's batch and turns a group's share of it into linear row ids.
#include "cuda/group.cuh"
#include "cuda/kernels.h"
#include "cuda/search.cuh"
#include "mpembed/error.h"

namespace mpembed {
namespace cuda {
namespace {

constexpr int64_t kNoPosition = INT64_MAX;

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
  if (error->position == kNoPosition) return;
  error->value = offsets[error->position];
  error->count = 1;
  error->status = MPE_ERR_OFFSETS;
}

// The batch of one group; with bad offsets all bags are empty.
struct GroupBatch {
  Tables tables;
  Integers indices, offsets;
  const mpe_error* bad;
  int64_t batch_size;
  mpe_lookups lookups;

  __device__ bool refused() const { return bad != nullptr && bad->status != MPE_OK; }
  __device__ int64_t bags() const { return tables.count * batch_size; }
  __device__ int64_t first_offset(int64_t t) const {
    return offsets[tables.table[t].feature * batch_size];
  }
  __device__ int64_t size_of(int64_t t) const {
    return offsets[(tables.table[t].feature + 1) * batch_size] - first_offset(t);
  }
};

// Inclusive sum over the block's threads. Call __syncthreads() before the next one.
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

// One block: sets each table's first lookup in the group and its origin, and clears the counts.
__global__ void segments_kernel(GroupBatch batch, int64_t* starts, mpe_error* error) {
  MPE_SHARED(int64_t, warps, kThreads / kWarp);
  MPE_SHARED(int64_t, total, 1);
  if (threadIdx.x == 0) {
    total[0] = 0;
    clear(error);
  }
  __syncthreads();
  const bool refused = batch.refused();
  for (int64_t base = 0; base < batch.tables.count; base += kThreads) {
    const int64_t t = base + threadIdx.x;
    const bool here = t < batch.tables.count;
    const int64_t size = here && !refused ? batch.size_of(t) : 0;
    const int64_t before = total[0];
    const int64_t end = before + block_sum(size, warps);
    if (here) {
      starts[t] = end - size;
      batch.lookups.origins[t] = refused ? 0 : batch.first_offset(t);
      batch.lookups.dropped[t] = 0;
    }
    if (threadIdx.x == kThreads - 1) total[0] = end;
    __syncthreads();
  }
}

__global__ void bag_offsets_kernel(GroupBatch batch, const int64_t* starts) {
  const int64_t i = thread_index();
  if (i == 0) batch.lookups.bag_offsets[0] = 0;
  if (i >= batch.bags()) return;
  const int64_t t = i / batch.batch_size, b = i % batch.batch_size;
  const int64_t end = batch.offsets[batch.tables.table[t].feature * batch.batch_size + b + 1];
  batch.lookups.bag_offsets[i + 1] =
      batch.refused() ? 0 : starts[t] + end - batch.lookups.origins[t];
}

// Lookup p of a bag.
__device__ __forceinline__ void write_key(const GroupBatch& batch, const int64_t* starts,
                                          const float* weights, mpe_error* error, int64_t p,
                                          int64_t bag) {
  if (bag >= batch.bags()) {
    batch.lookups.keys[p] = MPE_DROPPED;
    return;
  }
  const int64_t t = static_cast<uint32_t>(bag) / static_cast<uint32_t>(batch.batch_size);
  const mpe_table& table = batch.tables.table[t];
  const int64_t i = p - starts[t] + batch.lookups.origins[t];
  const int64_t index = batch.indices[i];
  const bool valid = index >= 0 && index < table.num_rows;
  if (!valid) {
    atomic_add64(batch.lookups.dropped + t, 1);
    atomic_min64(&error->position, i);
  }
  batch.lookups.keys[p] = valid ? static_cast<uint64_t>(table.base + index) : MPE_DROPPED;
  batch.lookups.bags[p] = static_cast<int32_t>(bag);
  if (batch.lookups.weights != nullptr) batch.lookups.weights[p] = weights[i];
}

__global__ void keys_kernel(GroupBatch batch, const int64_t* starts, const float* weights,
                            mpe_error* error) {
  each_position(batch.lookups.bag_offsets + 1, batch.bags(), batch.lookups.n,
                [&](int64_t p, int64_t bag) { write_key(batch, starts, weights, error, p, bag); });
}

__global__ void index_found_kernel(GroupBatch batch, int32_t drop, mpe_error* error) {
  const int64_t i = error->position;
  if (i == kNoPosition) return;
  if (drop) {
    clear(error);
    return;
  }
  int64_t count = 0;
  for (int32_t t = 0; t < batch.tables.count; ++t) {
    if (i >= batch.first_offset(t) && i < batch.first_offset(t) + batch.size_of(t))
      error->table = batch.tables.table[t].feature;
    count += batch.lookups.dropped[t];
  }
  error->value = batch.indices[i];
  error->count = count;
  error->status = MPE_ERR_INDEX;
}

__global__ void discard_kernel(mpe_lookups lookups, int32_t tables, const mpe_error* errors,
                               int32_t n, mpe_error* sink) {
  const mpe_error found = first_error(errors, n);
  if (found.status == MPE_OK) return;
  const int64_t i = thread_index();
  if (i == 0 && sink->status == MPE_OK) *sink = found;
  if (i < lookups.n) lookups.keys[i] = MPE_DROPPED;
  if (i < tables) lookups.dropped[i] = 0;
  if (i <= tables * lookups.batch_size) lookups.bag_offsets[i] = 0;
}

__global__ void count_kernel(Tables tables, mpe_lookups lookups, mpe_unique unique,
                             int32_t counts_unique, int32_t accesses, int32_t dropped) {
  const int64_t t = thread_index();
  if (t >= tables.count) return;
  const mpe_table& table = tables.table[t];
  const int64_t* ends = lookups.bag_offsets + t * lookups.batch_size;
  if (accesses) {
    count_stat(table, MPE_stat_accesses, ends[lookups.batch_size] - ends[0] - lookups.dropped[t]);
  }
  if (dropped) count_stat(table, MPE_stat_dropped, lookups.dropped[t]);
  if (!counts_unique) return;
  const auto row = [&](int64_t i) { return static_cast<int64_t>(unique.rows[i]); };
  const int64_t first = first_at_least(*unique.count, table.base, row);
  const int64_t last = first_at_least(*unique.count, table.base + table.num_rows, row);
  count_stat(table, MPE_stat_unique, last - first);
}

__global__ void advance_kernel(uint64_t* step) { ++*step; }

}  // namespace

mpe_status check_offsets(const mpe_batch* given, void* stream, mpe_error* error) {
  const int64_t bags = given->num_features * given->batch_size;
  const Integers offsets{given->offsets, given->offset_bits};
  MPE_TRY(launch_one("check_offsets", stream, clear_kernel, error));
  MPE_TRY(launch("check_offsets", stream, bags + 1, check_offsets_kernel, offsets, bags,
                 given->num_indices, error));
  return launch_one("check_offsets", stream, offsets_found_kernel, offsets, error);
}

mpe_status prepare(const mpe_group* group, const mpe_batch* given, int32_t drop,
                   const mpe_error* offsets, mpe_lookups* out, void* stream, mpe_error* error) {
  const GroupBatch batch{Tables(*group),
                         {given->indices, given->index_bits},
                         {given->offsets, given->offset_bits},
                         offsets,
                         given->batch_size,
                         *out};
  Workspace<int64_t> starts(stream);
  MPE_TRY(starts.acquire(group->num_tables, "prepare"));
  MPE_TRY(launch("prepare", stream, kThreads, segments_kernel, batch, starts.get(), error));
  const int64_t bags = group->num_tables * given->batch_size;
  MPE_TRY(launch("prepare", stream, bags + 1, bag_offsets_kernel, batch, starts.get()));
  MPE_TRY(launch("prepare", stream, threads_for_positions(out->n), keys_kernel, batch, starts.get(),
                 given->weights, error));
  return launch_one("prepare", stream, index_found_kernel, batch, drop, error);
}

mpe_status discard(const mpe_group* group, mpe_lookups* lookups, const mpe_error* errors, int32_t n,
                   mpe_error* sink, void* stream) {
  int64_t threads = group->num_tables * lookups->batch_size + 1;
  if (threads < group->num_tables) threads = group->num_tables;
  if (threads < lookups->n) threads = lookups->n;
  return launch("discard", stream, threads, discard_kernel, *lookups, group->num_tables, errors, n,
                sink);
}

mpe_status count(const mpe_group* group, const mpe_lookups* lookups, const mpe_unique* unique,
                 int32_t accesses, int32_t dropped, void* stream) {
  const mpe_unique rows = unique != nullptr ? *unique : mpe_unique{};
  const int32_t counts_unique = unique != nullptr ? 1 : 0;
  return launch("count", stream, group->num_tables, count_kernel, Tables(*group), *lookups, rows,
                counts_unique, accesses, dropped);
}

mpe_status advance(uint64_t* step, void* stream) {
  return launch_one("advance", stream, advance_kernel, step);
}

}  // namespace cuda
}  // namespace mpembed
