// Empties batches in which something is wrong, and finds the unique rows of a batch, ascending,
// each with the positions of its lookups in input order: a stable radix sort of the bits in use,
// then a selection of each row's first lookup. The count stays on the device.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/radix_sort.cuh"
#include "mpembed/error.h"
#include "total_rows.h"

namespace mpembed {
namespace cuda {
namespace {

// Of a thread: as many as its registers allow.
template <class Key>
constexpr int kItems = sizeof(Key) == 8 ? 4 : 8;
template <class Key>
constexpr int64_t kTileItems = int64_t{kThreads} * kItems<Key>;

// The sorted keys in tiles, one a block, and how many unique rows begin before each. Tiles are
// numbered in the order in which their blocks begin, so that no block waits for one that has not.
struct Tiles {
  uint32_t* begun;   // 0 at the start
  uint64_t* counts;  // one a tile: 0, kPart and its rows, or kWhole and those of all up to it

  static constexpr int kShift = 62;
  static constexpr uint64_t kPart = uint64_t{1} << kShift, kWhole = uint64_t{2} << kShift;

  __device__ void set(int64_t tile, uint64_t kind, uint32_t rows) const {
    atomicExch(reinterpret_cast<unsigned long long*>(counts + tile),
               static_cast<unsigned long long>(kind | rows));
  }
  __device__ uint64_t wait_for(int64_t tile, bool exists) const {
    uint64_t found = kWhole;
    if (exists) found = *const_cast<volatile uint64_t*>(counts + tile);
    while (__any_sync(kFullMask, found == 0) != 0) {
      __nanosleep(50);
      if (exists && found == 0) found = *const_cast<volatile uint64_t*>(counts + tile);
    }
    return found;
  }
  // The rows of all tiles before this one. A whole warp calls it: each time its lanes look at 32
  // tiles, up to the last one that knows the rows before itself.
  __device__ uint32_t rows_before(int64_t tile) const {
    uint32_t rows = 0;
    for (int64_t first = tile - 1;; first -= kWarp) {
      const int64_t mine = first - lane_index();
      const uint64_t found = wait_for(mine, mine >= 0);
      const unsigned whole = __ballot_sync(kFullMask, found >= kWhole);
      const int last = whole != 0 ? __ffs(static_cast<int>(whole)) - 1 : kWarp - 1;
      uint32_t sum = lane_index() <= last ? static_cast<uint32_t>(found) : 0;
      for (int s = kWarp / 2; s > 0; s >>= 1) sum += __shfl_xor_sync(kFullMask, sum, s);
      rows += sum;
      if (whole != 0) return rows;
    }
  }
};

// What is wrong with a batch, and the group's share of it, which is emptied then.
struct Refusal {
  mpe_lookups lookups;
  int32_t tables, n;
  const mpe_error* errors;  // n; NULL: nothing is wrong
  mpe_error* sink;

  int64_t threads() const {
    const int64_t bags = tables * lookups.batch_size + 1;
    const int64_t most = bags > tables ? bags : tables;
    return lookups.n > most ? lookups.n : most;
  }
  // Does thread i's part; returns whether something is wrong.
  __device__ bool apply(int64_t i) const {
    if (errors == nullptr) return false;
    const mpe_error found = first_error(errors, n);
    if (found.status == MPE_OK) return false;
    if (i == 0 && sink->status == MPE_OK) *sink = found;
    if (i < lookups.n) lookups.keys[i] = MPE_DROPPED;
    if (i < tables) lookups.dropped[i] = 0;
    if (i <= tables * lookups.batch_size) lookups.bag_offsets[i] = 0;
    return true;
  }
};

__global__ void discard_kernel(Refusal refusal) { refusal.apply(thread_index()); }

template <class Key>
__global__ void load_kernel(const uint64_t* keys, int64_t n, Key limit, Key* out,
                            int32_t* positions, Tiles tiles, int64_t num_tiles, Refusal refusal) {
  const int64_t i = thread_index();
  const bool refused = refusal.apply(i);
  if (i == 0) *tiles.begun = 0;
  if (i < num_tiles) tiles.counts[i] = 0;
  if (i >= n) return;
  // Dropped keys become `limit`, one past the largest key, so that fewer bits are sorted.
  const uint64_t key = refused ? MPE_DROPPED : keys[i];
  out[i] = key < limit ? static_cast<Key>(key) : limit;
  positions[i] = static_cast<int32_t>(i);
}

// Writes the unique rows. Behind the positions of their lookups come those of the dropped ones.
template <class Key>
__global__ void __launch_bounds__(kThreads, 6)
    unique_kernel(const Key* sorted, const int32_t* positions, int64_t n, Key limit, Tiles tiles,
                  mpe_unique out) {
  MPE_SHARED(uint32_t, tile_of, 1);
  MPE_SHARED(uint32_t, warps, kThreads / kWarp);
  MPE_SHARED(uint32_t, before, 1);
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) tile_of[0] = atomicAdd(tiles.begun, 1u);
  __syncthreads();
  const int64_t tile = tile_of[0];
  const int64_t first = tile * kTileItems<Key> + warp * kItems<Key> * kWarp + lane;
  Key keys[kItems<Key>];
  unsigned heads[kItems<Key>];
  uint32_t rows = 0;
  MPE_UNROLL
  for (int k = 0; k < kItems<Key>; ++k) {
    const int64_t i = first + k * kWarp;
    keys[k] = i < n ? sorted[i] : limit;
    const bool begins = keys[k] < limit && (i == 0 || sorted[i - 1] != keys[k]);
    heads[k] = __ballot_sync(kFullMask, begins);
    rows += static_cast<uint32_t>(__popc(heads[k]));
  }
  if (lane == 0) warps[warp] = rows;
  __syncthreads();
  if (warp == 0) {
    uint32_t all = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) all += warps[w];
    if (lane == 0) tiles.set(tile, tile == 0 ? Tiles::kWhole : Tiles::kPart, all);
    const uint32_t rows_before = tile == 0 ? 0 : tiles.rows_before(tile);
    if (lane == 0 && tile != 0) tiles.set(tile, Tiles::kWhole, rows_before + all);
    if (lane == 0) before[0] = rows_before;
  }
  __syncthreads();
  uint32_t row = before[0];
  for (int w = 0; w < warp; ++w) row += warps[w];
  MPE_UNROLL
  for (int k = 0; k < kItems<Key>; ++k) {
    const int64_t i = first + k * kWarp;
    const bool begins = ((heads[k] >> lane) & 1u) != 0;
    const int64_t u = row + static_cast<uint32_t>(__popc(heads[k] & ((1u << lane) - 1)));
    row += static_cast<uint32_t>(__popc(heads[k]));
    if (i >= n) continue;
    out.positions[i] = positions[i];
    if (begins) {
      out.rows[u] = keys[k];
      out.starts[u] = i;
    }
    // One thread finds the end: the first dropped lookup, or the last lookup of all.
    const bool dropped = keys[k] >= limit;
    if (dropped ? i == 0 || sorted[i - 1] < limit : i == n - 1) {
      const int64_t count = u + (begins ? 1 : 0);
      *out.count = count;
      out.starts[count] = dropped ? i : n;
    }
  }
}

__global__ void empty_kernel(mpe_unique out) {
  *out.count = 0;
  out.starts[0] = 0;
}

template <class Key>
mpe_status dedup_as(const uint64_t* keys, int64_t n, uint64_t limit, const Refusal& refusal,
                    mpe_unique* out, void* stream) {
  const Key bound = static_cast<Key>(limit);
  const int64_t num_tiles = ceil_div(n, kTileItems<Key>);
  Workspace workspace(stream);
  PairSort<Key, int32_t> sort(n, bits_for(limit + 1), stream);
  MPE_TRY(sort.plan(&workspace, "dedup"));
  const auto begun = workspace.plan<uint32_t>(1);
  const auto counts = workspace.plan<uint64_t>(num_tiles);
  MPE_TRY(workspace.acquire("dedup"));
  sort.place(workspace);
  const Tiles tiles{workspace.get(begun), workspace.get(counts)};
  const int64_t threads = refusal.errors != nullptr ? refusal.threads() : n;
  MPE_TRY(launch("dedup", stream, threads, load_kernel<Key>, keys, n, bound, sort.keys(),
                 sort.values(), tiles, num_tiles, refusal));
  MPE_TRY(sort.run(workspace, "dedup"));
  return launch_blocks("dedup", stream, num_tiles, kThreads, unique_kernel<Key>, sort.keys(),
                       sort.values(), n, bound, tiles, *out);
}

mpe_status dedup_or_discard(const uint64_t* keys, int64_t n, uint64_t limit, const Refusal& refusal,
                            mpe_unique* out, void* stream) {
  if (n == 0) return launch_one("dedup", stream, empty_kernel, *out);
  if (limit < UINT32_MAX) return dedup_as<uint32_t>(keys, n, limit, refusal, out, stream);
  return dedup_as<uint64_t>(keys, n, limit, refusal, out, stream);
}

}  // namespace

mpe_status dedup(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out, void* stream) {
  return dedup_or_discard(keys, n, limit, Refusal{}, out, stream);
}

mpe_status discard(const mpe_group* group, mpe_lookups* lookups, const mpe_error* errors, int32_t n,
                   mpe_error* sink, mpe_unique* unique, void* stream) {
  const Refusal refusal{*lookups, group->num_tables, n, errors, sink};
  if (unique == nullptr || lookups->n == 0) {
    MPE_TRY(launch("discard", stream, refusal.threads(), discard_kernel, refusal));
  }
  if (unique == nullptr) return MPE_OK;
  return dedup_or_discard(lookups->keys, lookups->n, total_rows(*group), refusal, unique, stream);
}

}  // namespace cuda
}  // namespace mpembed
