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

// A group's share of a batch in a sort of several: its ids and lookups come behind those of the
// groups before it.
struct SortedShare {
  mpe_lookups lookups;
  mpe_unique unique;     // all NULL: its rows are not sorted
  uint64_t rows;         // of the group; dropped keys get this as their id
  uint64_t first_id;     // in the sort
  int64_t first_lookup;  // in the sort
  int64_t first_thread, first_tile;
  int32_t tables;

  __host__ __device__ bool is_sorted() const { return unique.count != nullptr; }
  // How many threads read it; `empties`: or empty it.
  int64_t threads(bool empties) const {
    const int64_t bags = tables * lookups.batch_size + 1;
    const int64_t most = !empties ? 1 : bags > tables ? bags : tables;
    return lookups.n > most ? lookups.n : most;
  }
};

// What one launch serves. Kernels read it from their parameters in place: a copy would be indexed
// in local memory.
struct Shares {
  static constexpr int kMost = 8;
  SortedShare share[kMost];
  int32_t count;
  int32_t num_errors;  // 0: nothing can be wrong
  const mpe_error* errors;
  mpe_error* sink;

  // The share of thread or tile i; first: which of the two.
  __device__ __forceinline__ const SortedShare& of(int64_t i, int64_t SortedShare::* first) const {
    int g = 0;
    MPE_UNROLL
    for (int k = 1; k < kMost; ++k) g += k < count && i >= share[k].*first ? 1 : 0;
    return share[g];
  }
  // Does the part of thread i, the j-th of a share, if something is wrong; returns whether it is.
  __device__ bool refuse(int64_t i, const SortedShare& one, int64_t j) const {
    if (num_errors == 0) return false;
    const mpe_error found = first_error(errors, num_errors);
    if (found.status == MPE_OK) return false;
    if (i == 0 && sink->status == MPE_OK) *sink = found;
    if (j < one.lookups.n) one.lookups.keys[j] = MPE_DROPPED;
    if (j < one.tables) one.lookups.dropped[j] = 0;
    if (j <= one.tables * one.lookups.batch_size) one.lookups.bag_offsets[j] = 0;
    return true;
  }
};

template <class Key>
__global__ void load_kernel(const __grid_constant__ Shares shares, int64_t threads, Key* out,
                            int32_t* positions, Tiles tiles, int64_t num_tiles) {
  const int64_t i = thread_index();
  if (i == 0 && num_tiles > 0) *tiles.begun = 0;
  if (i < num_tiles) tiles.counts[i] = 0;
  if (i >= threads) return;
  const SortedShare& share = shares.of(i, &SortedShare::first_thread);
  const int64_t j = i - share.first_thread;
  const bool refused = shares.refuse(i, share, j);
  if (!share.is_sorted()) return;
  if (j == 0 && share.lookups.n == 0) *share.unique.count = share.unique.starts[0] = 0;
  if (j >= share.lookups.n) return;
  // Dropped keys become one past the group's largest, so that fewer bits are sorted.
  const uint64_t key = refused ? MPE_DROPPED : share.lookups.keys[j];
  out[share.first_lookup + j] =
      static_cast<Key>(share.first_id + (key < share.rows ? key : share.rows));
  positions[share.first_lookup + j] = static_cast<int32_t>(j);
}

// Writes the unique rows. Behind the positions of their lookups come those of the dropped ones. A
// tile has lookups of one group.
template <class Key>
__global__ void __launch_bounds__(kThreads, 6)
    unique_kernel(const Key* sorted, const int32_t* positions,
                  const __grid_constant__ Shares shares, Tiles all_tiles) {
  MPE_SHARED(uint32_t, tile_of, 1);
  MPE_SHARED(uint32_t, warps, kThreads / kWarp);
  MPE_SHARED(uint32_t, before, 1);
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) tile_of[0] = atomicAdd(all_tiles.begun, 1u);
  __syncthreads();
  const SortedShare& share = shares.of(tile_of[0], &SortedShare::first_tile);
  const mpe_unique& out = share.unique;
  const Tiles tiles{all_tiles.begun, all_tiles.counts + share.first_tile};
  const Key limit = static_cast<Key>(share.first_id + share.rows);
  const int64_t tile = tile_of[0] - share.first_tile;
  const int64_t begin = share.first_lookup, end = begin + share.lookups.n;
  const int64_t first = begin + tile * kTileItems<Key> + warp * kItems<Key> * kWarp + lane;
  Key keys[kItems<Key>];
  unsigned heads[kItems<Key>];
  uint32_t rows = 0;
  MPE_UNROLL
  for (int k = 0; k < kItems<Key>; ++k) {
    const int64_t i = first + k * kWarp;
    keys[k] = i < end ? sorted[i] : limit;
    const bool begins = keys[k] < limit && (i == begin || sorted[i - 1] != keys[k]);
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
    if (i >= end) continue;
    out.positions[i - begin] = positions[i];
    if (begins) {
      out.rows[u] = keys[k] - share.first_id;
      out.starts[u] = i - begin;
    }
    // One thread finds the end: the first dropped lookup, or the last lookup of all.
    const bool dropped = keys[k] >= limit;
    if (dropped ? i == begin || sorted[i - 1] < limit : i == end - 1) {
      const int64_t count = u + (begins ? 1 : 0);
      *out.count = count;
      out.starts[count] = (dropped ? i : end) - begin;
    }
  }
}

// The shares of one launch, and what they take together.
class Sort {
 public:
  Sort(const mpe_error* errors, int32_t n, mpe_error* sink) : shares_{} {
    shares_.errors = errors;
    shares_.num_errors = n;
    shares_.sink = sink;
  }

  // Whether there is room for a share of n lookups, sorted or not.
  bool has_room(int64_t n) const {
    return shares_.count < Shares::kMost && lookups_ + n <= INT32_MAX;
  }
  void add(const mpe_lookups& lookups, int32_t tables, uint64_t rows, const mpe_unique* unique) {
    const mpe_unique wanted = unique != nullptr ? *unique : mpe_unique{};
    SortedShare& share = shares_.share[shares_.count++];
    share = {lookups, wanted, rows, ids_, lookups_, threads_, 0, tables};
    threads_ += share.threads(shares_.num_errors > 0);
    if (!share.is_sorted()) return;
    lookups_ += lookups.n;
    ids_ += rows + 1;
  }
  mpe_status run(void* stream) {
    return ids_ <= UINT32_MAX ? run_as<uint32_t>(stream) : run_as<uint64_t>(stream);
  }

 private:
  template <class Key>
  mpe_status run_as(void* stream) {
    int64_t num_tiles = 0;
    for (int32_t g = 0; g < shares_.count; ++g) {
      SortedShare& share = shares_.share[g];
      share.first_tile = num_tiles;
      if (share.is_sorted()) num_tiles += ceil_div(share.lookups.n, kTileItems<Key>);
    }
    if (num_tiles == 0) {
      return launch("dedup", stream, threads_, load_kernel<Key>, shares_, threads_,
                    static_cast<Key*>(nullptr), static_cast<int32_t*>(nullptr), Tiles{}, num_tiles);
    }
    Workspace workspace(stream);
    PairSort<Key, int32_t> sort(lookups_, bits_for(ids_), stream);
    MPE_TRY(sort.plan(&workspace, "dedup"));
    const auto begun = workspace.plan<uint32_t>(1);
    const auto counts = workspace.plan<uint64_t>(num_tiles);
    MPE_TRY(workspace.acquire("dedup"));
    sort.place(workspace);
    const Tiles tiles{workspace.get(begun), workspace.get(counts)};
    MPE_TRY(launch("dedup", stream, threads_, load_kernel<Key>, shares_, threads_, sort.keys(),
                   sort.values(), tiles, num_tiles));
    MPE_TRY(sort.run(workspace, "dedup"));
    return launch_blocks("dedup", stream, num_tiles, kThreads, unique_kernel<Key>, sort.keys(),
                         sort.values(), shares_, tiles);
  }

  Shares shares_;
  uint64_t ids_ = 0;
  int64_t lookups_ = 0, threads_ = 0;
};

}  // namespace

mpe_status dedup(const uint64_t* keys, int64_t n, uint64_t limit, mpe_unique* out, void* stream) {
  mpe_lookups lookups{};
  lookups.n = n;
  lookups.keys = const_cast<uint64_t*>(keys);  // only read
  Sort sort(nullptr, 0, nullptr);
  sort.add(lookups, 0, limit, out);
  return sort.run(stream);
}

mpe_status discard(const mpe_share* shares, int32_t count, const mpe_error* errors, int32_t n,
                   mpe_error* sink, void* stream) {
  for (int32_t next = 0; next < count;) {
    Sort sort(errors, n, sink);
    for (; next < count && sort.has_room(shares[next].lookups->n); ++next) {
      const mpe_share& share = shares[next];
      sort.add(*share.lookups, share.group->num_tables, total_rows(*share.group), share.unique);
    }
    MPE_TRY(sort.run(stream));
  }
  return MPE_OK;
}

}  // namespace cuda
}  // namespace mpembed
