// Checks a caller's batch and turns a group's share of it into linear row ids.
#include "cuda/group.cuh"
#include "cuda/kernels.h"
#include "cuda/search.cuh"

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

// One block, for those who check the offsets apart from the groups' lookups.
__global__ void check_offsets_kernel(Integers offsets, int64_t bags, int64_t num_indices,
                                     mpe_error* error) {
  if (threadIdx.x == 0) clear(error);
  __syncthreads();
  for (int64_t i = threadIdx.x; i <= bags; i += blockDim.x) {
    const int64_t value = offsets[i];
    bool bad = i == 0 ? value != 0 : value < offsets[i - 1];
    bad = bad || (i == bags && value != num_indices);
    if (bad) atomic_min64(&error->position, i);
  }
  __syncthreads();
  if (threadIdx.x != 0 || error->position == kNoPosition) return;
  *error = mpe_error{MPE_ERR_OFFSETS, 0, error->position, offsets[error->position], 1};
}

// The batch of one group. Its offsets are checked as they are used: where they are wrong, what is
// written is nonsense within its bounds, which discard() replaces.
struct GroupBatch {
  Tables tables;
  Integers indices, offsets;
  int64_t num_indices, last_offset;  // of the whole batch
  int64_t batch_size;
  mpe_lookups lookups;

  __device__ uint32_t bags() const { return static_cast<uint32_t>(tables.count * batch_size); }
  __device__ int64_t bounded(int64_t offset) const {
    return offset < 0 ? 0 : offset < num_indices ? offset : num_indices;
  }
  __device__ int64_t offset(int64_t i) const { return bounded(offsets[i]); }
  __device__ int64_t first_offset(int64_t t) const {
    return offset(tables.table[t].feature * batch_size);
  }
  __device__ int64_t size_of(int64_t t) const {
    return offset((tables.table[t].feature + 1) * batch_size) - first_offset(t);
  }
  // A table's first lookup in the group; segments_kernel writes it.
  __device__ int64_t start(int64_t t) const { return lookups.bag_offsets[t * batch_size]; }
  __device__ int32_t table_of(uint32_t bag) const {
    return static_cast<int32_t>(bag / static_cast<uint32_t>(batch_size));
  }
};

// A table's bags in the group. A lane keeps the one that it needed last: its bags are neighbours.
struct Segment {
  int32_t table;
  uint32_t first, last;  // its bags
  int64_t to_offset;     // from a bag to the place in the batch's offsets where it ends
  int64_t to_group;      // from a lookup's place in the batch to that in the group

  __device__ static Segment of(const GroupBatch& batch, uint32_t bag) {
    const int32_t t = batch.table_of(bag);
    const uint32_t size = static_cast<uint32_t>(batch.batch_size);
    const uint32_t first = static_cast<uint32_t>(t) * size;
    return {t, first, first + size, (batch.tables.table[t].feature - t) * batch.batch_size + 1,
            batch.start(t) - batch.lookups.origins[t]};
  }
  __device__ __forceinline__ void follow(const GroupBatch& batch, uint32_t bag) {
    const bool outside = bag < first || bag >= last;
    if (kModel) table = outside ? opaque(table) : table;  // once in many windows
    if (!kModel && outside) *this = of(batch, bag);
  }
  // Where a bag ends in the group.
  __device__ __forceinline__ int64_t end(const GroupBatch& batch, uint32_t bag) const {
    return to_group + batch.offset(bag + to_offset);
  }
};

// While the kernels of a group run, its error holds the first bad position of the offsets in
// `value`, the first one of the indices in `position`, and the blocks that are done in `table`.
__device__ inline void report_offset(mpe_error* error, int64_t i) {
  atomic_min64(&error->value, i);
}

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

// One block: sets each table's first lookup in the group and its origin, clears the counts, and
// checks the batch's first offset.
__global__ void segments_kernel(GroupBatch batch, mpe_error* error) {
  MPE_SHARED(int64_t, warps, kThreads / kWarp);
  MPE_SHARED(int64_t, total, 1);
  if (threadIdx.x == 0) {
    total[0] = 0;
    clear(error);
  }
  __syncthreads();
  for (int64_t base = 0; base < batch.tables.count; base += kThreads) {
    const int64_t t = base + threadIdx.x;
    const bool here = t < batch.tables.count;
    const int64_t size = here ? batch.size_of(t) : 0;
    const int64_t before = total[0];
    const int64_t end = before + block_sum(size, warps);
    if (here) {
      if (batch.batch_size > 0) batch.lookups.bag_offsets[t * batch.batch_size] = end - size;
      batch.lookups.origins[t] = batch.first_offset(t);
      batch.lookups.dropped[t] = 0;
    }
    if (here && batch.tables.table[t].feature == 0) {
      const int64_t value = batch.offsets[0];
      const bool last = batch.last_offset == 0;
      if (value != 0 || (last && value != batch.num_indices)) report_offset(error, 0);
    }
    if (threadIdx.x == kThreads - 1) total[0] = end;
    __syncthreads();
  }
  if (threadIdx.x == 0) batch.lookups.bag_offsets[batch.bags()] = total[0];
}

// Checks where a bag ends and writes it; not where a table ends, which is known.
__device__ __forceinline__ void write_bag(const GroupBatch& batch, mpe_error* error,
                                          Segment* segment, uint32_t bag) {
  if (bag >= batch.bags()) return;
  segment->follow(batch, bag);
  const int64_t i = bag + segment->to_offset;
  const int64_t before = batch.offsets[i - 1], value = batch.offsets[i];
  if (bag + 1 < segment->last) {
    batch.lookups.bag_offsets[bag + 1] = segment->to_group + batch.bounded(value);
  }
  if (value < before || (i == batch.last_offset && value != batch.num_indices)) {
    report_offset(error, i);
  }
}

// Lookup p of a bag.
__device__ __forceinline__ void write_key(const GroupBatch& batch, const float* weights,
                                          mpe_error* error, Segment* segment, uint32_t p,
                                          uint32_t bag) {
  if (bag >= batch.bags()) {
    batch.lookups.keys[p] = MPE_DROPPED;
    return;
  }
  segment->follow(batch, bag);
  const mpe_table& table = batch.tables.table[segment->table];
  const int64_t i = p - segment->to_group;
  const bool inside = i >= 0 && i < batch.num_indices;  // unless the offsets are wrong
  const int64_t index = inside ? batch.indices[i] : -1;
  const bool valid = index >= 0 && index < table.num_rows;
  if (inside && !valid) {
    atomic_add64(batch.lookups.dropped + segment->table, 1);
    atomic_min64(&error->position, i);
  }
  batch.lookups.keys[p] = valid ? static_cast<uint64_t>(table.base + index) : MPE_DROPPED;
  batch.lookups.bags[p] = static_cast<int32_t>(bag);
  if (batch.lookups.weights != nullptr) batch.lookups.weights[p] = inside ? weights[i] : 0.0f;
}

// One thread, when all lookups are written.
__device__ void finish(const GroupBatch& batch, bool drop, mpe_error* error) {
  const int64_t offset = __ldcg(reinterpret_cast<const long long*>(&error->value));
  const int64_t i = __ldcg(reinterpret_cast<const long long*>(&error->position));
  clear(error);
  if (offset != kNoPosition) {
    *error = mpe_error{MPE_ERR_OFFSETS, 0, offset, batch.offsets[offset], 1};
    return;
  }
  if (i == kNoPosition || drop) return;
  int64_t count = 0;
  for (int32_t t = 0; t < batch.tables.count; ++t) {
    if (i >= batch.first_offset(t) && i < batch.first_offset(t) + batch.size_of(t))
      error->table = batch.tables.table[t].feature;
    count += __ldcg(reinterpret_cast<const long long*>(batch.lookups.dropped + t));
  }
  error->position = i;
  error->value = batch.indices[i];
  error->count = count;
  error->status = MPE_ERR_INDEX;
}

// The first warps write bags, the others lookups.
__global__ void keys_kernel(const __grid_constant__ GroupBatch batch, const float* weights,
                            int32_t drop, int64_t bag_warps, mpe_error* error) {
  const int64_t warp = thread_index() / kWarp;
  const uint32_t bags = batch.bags();
  Segment segment{};
  if (warp < bag_warps) {
    const uint32_t first = static_cast<uint32_t>(warp * kWarpPositions + lane_index());
    if (first < bags) segment = Segment::of(batch, first);
    MPE_UNROLL
    for (uint32_t k = 0; k < kWarpPositions; k += kWarp) {
      write_bag(batch, error, &segment, first + k);
    }
  } else {
    const auto find = [&](uint32_t position) {
      const uint32_t bag = warp_first_at_least(
          bags, position, [&](uint32_t one) { return Segment::of(batch, one).end(batch, one); });
      if (bag < bags) segment = Segment::of(batch, bag);
      return bag;
    };
    const auto end = [&](uint32_t bag) {
      segment.follow(batch, bag);
      return segment.end(batch, bag);
    };
    const auto visit = [&](uint32_t p, uint32_t bag) {
      write_key(batch, weights, error, &segment, p, bag);
    };
    each_position(warp - bag_warps, find, end, bags, static_cast<uint32_t>(batch.lookups.n), visit);
  }
  if (is_last_block(&error->table) && threadIdx.x == 0) finish(batch, drop != 0, error);
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
  return launch("check_offsets", stream, kThreads, check_offsets_kernel,
                Integers{given->offsets, given->offset_bits}, bags, given->num_indices, error);
}

mpe_status prepare(const mpe_group* group, const mpe_batch* given, int32_t drop, mpe_lookups* out,
                   void* stream, mpe_error* error) {
  const GroupBatch batch{Tables(*group),
                         {given->indices, given->index_bits},
                         {given->offsets, given->offset_bits},
                         given->num_indices,
                         given->num_features * given->batch_size,
                         given->batch_size,
                         *out};
  MPE_TRY(launch("prepare", stream, kThreads, segments_kernel, batch, error));
  const int64_t bags = threads_for_positions(group->num_tables * given->batch_size);
  const int64_t threads = bags + threads_for_positions(out->n);
  return launch("prepare", stream, threads > 0 ? threads : 1, keys_kernel, batch, given->weights,
                drop, bags / kWarp, error);
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
