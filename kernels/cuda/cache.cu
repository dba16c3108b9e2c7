// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
//
// Admission has two parts. First a warp owns a set: its lanes hold the set's tags and policy state
// while the set's misses get ways one after the other, in ascending order. Then tiles of lanes move
// the rows of all misses in parallel: victims back to their tables, new rows in. A slot is pinned
// once it is taken, so no two misses of a batch move rows through the same slot.
#include "cuda/admission.cuh"
#include "cuda/kernels.h"
#include "cuda/radix_sort.cuh"
#include "cuda/search.cuh"
#include "cuda/stats.cuh"

namespace mpembed {
namespace cuda {
namespace {

// Step 1.
__global__ void tick_kernel(mpe_cache cache, const int64_t* unique, int32_t sketch) {
  ++cache.counters[0];
  if (sketch) cache.counters[1] += static_cast<uint64_t>(*unique);
}

// Statistics of 32 rows, one per lane. Rows ascend, so the lanes of one table are neighbours.
__device__ void count_found(const Admission& admission, int64_t u, bool here, bool hit) {
  const int32_t t = here ? admission.tables.find(admission.unique.rows[u]) : -1;
  const unsigned peers = lanes_with_table(t), hits = __ballot_sync(kFullMask, hit) & peers;
  if (!here || !leads(peers)) return;
  const mpe_table& table = admission.tables.table[t];
  const int64_t rows = __popc(peers), found = __popc(hits);
  count_stat(table, MPE_stat_unique, rows);
  count_stat(table, MPE_stat_accesses,
             admission.unique.starts[u + rows] - admission.unique.starts[u]);
  count_stat(table, MPE_stat_hits, found);
  count_stat(table, MPE_stat_misses, rows - found);
}

// Step 2: finds all rows, pins and touches the hits. sets[u]: the set of a miss, else num_sets.
template <class Policy>
__global__ void find_kernel(Admission admission, uint32_t* sets, int32_t* order) {
  const int64_t u = thread_index();
  const bool here = u < admission.count();
  const uint64_t key = here ? admission.unique.rows[u] : 0;
  const int64_t slot = warp_probe_each(admission.cache, key, here);
  const bool hit = slot >= 0;
  count_found(admission, u, here, hit);
  if (u >= admission.n) return;
  order[u] = static_cast<int32_t>(u);
  sets[u] = static_cast<uint32_t>(here && !hit ? set_of(key, admission.cache.num_sets)
                                               : admission.cache.num_sets);
  if (here) admission.slots[u] = static_cast<int32_t>(slot);
  if (!hit) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(admission.cache.tags + slot),
            static_cast<unsigned long long>(kTagPin));
  admission.cache.meta[slot] = Policy::on_hit(admission.cache.meta[slot], admission.clock());
}

// Step 3: all estimates are read before a cell changes.
template <class Policy>
__global__ void estimate_kernel(Admission admission, const uint32_t* sets, const int32_t* order,
                                uint32_t* estimates) {
  const int64_t i = thread_index();
  if (i < admission.n && sets[i] < admission.cache.num_sets) {
    const uint64_t key = admission.unique.rows[order[i]];
    estimates[i] = Policy::next(sketch_estimate(admission.cache, key));
  }
}

// The rest of step 3, and step 4: cells only rise, so their order does not matter. A warp looks at
// 32 misses and admits those of the sets that begin there, with the next sets' tags on their way.
template <class Policy>
__global__ void admit_kernel(Admission admission, Misses misses) {
  constexpr int kSetsInFlight = 4;
  const int64_t i = thread_index(), first = i - lane_index();
  const Miss mine = Miss::load<Policy>(admission, misses, i);
  const bool head =
      mine.set < admission.cache.num_sets && (i == 0 || misses.sets[i - 1] != mine.set);
  if constexpr (Policy::kSketch) {
    if (mine.set < admission.cache.num_sets) {
      for (uint32_t j = 0; j < kSketchRows; ++j) {
        sketch_raise(admission.cache, mine.key, j, mine.estimate);
      }
    }
  }
  const uint32_t clock = admission.clock();
  for (unsigned left = __ballot_sync(kFullMask, head); left != 0;) {
    Set<Policy> sets[kSetsInFlight];
    int heads[kSetsInFlight];
    MPE_UNROLL
    for (int j = 0; j < kSetsInFlight; ++j) {
      heads[j] = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      const uint32_t set = __shfl_sync(kFullMask, mine.set, heads[j] & (kWarp - 1));
      if (heads[j] >= 0) sets[j].load(admission.cache, set);
    }
    MPE_UNROLL
    for (int j = 0; j < kSetsInFlight; ++j) {
      const uint32_t set = __shfl_sync(kFullMask, mine.set, heads[j] & (kWarp - 1));
      for (int at = heads[j]; at >= 0; ++at) {
        // A set's misses may go on where the next warp looks.
        const Miss one =
            at < kWarp ? mine.from<Policy>(at) : Miss::load<Policy>(admission, misses, first + at);
        if (one.set != set) break;
        const uint64_t outcome = sets[j].admit(admission, clock, one.u, one.key, one.estimate);
        if (lane_index() == 0) misses.outcomes[first + at] = outcome;
      }
    }
  }
}

// The rows of step 4: a tile takes as many misses as it has lanes and moves their rows one by one.
template <bool kLong>
__global__ void __launch_bounds__(kThreads, kLong ? 3 : 4)
    move_kernel(const __grid_constant__ Admission admission, Misses misses, int32_t shift) {
  const Tile tile(shift);
  const int64_t i = thread_index();
  const bool miss = i < admission.n && misses.sets[i] < admission.cache.num_sets;
  const int64_t u = miss ? misses.order[i] : 0;
  const uint64_t outcome = miss ? misses.outcomes[i] : kConflict;
  const bool evicts = (outcome & kTagIdMask) != kTagEmpty;
  Move mine{miss ? admission.unique.rows[u] : 0, outcome, miss ? admission.slots[u] : -1, -1, -1};
  if (miss) mine.table = admission.tables.find(mine.key);
  if (evicts) mine.owner = admission.tables.find(outcome & kTagIdMask);
  count_lanes(admission.tables, mine.table, MPE_stat_conflict_misses, miss && outcome == kConflict);
  count_lanes(admission.tables, mine.table, MPE_stat_rejected, outcome == kRejected);
  count_lanes(admission.tables, mine.owner, MPE_stat_evictions, evicts);
  count_lanes(admission.tables, mine.owner, MPE_stat_write_backs,
              evicts && (outcome & kTagDirty) != 0);
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    const Move move = mine.from(tile, lane);
    if (move.slot >= 0) move_row<kLong>(admission, tile, move);
  }
}

// Step 5.
__device__ bool halving_due(const mpe_cache& cache) {
  return cache.counters[1] >= kHalvingPeriod * static_cast<uint64_t>(cache.num_sets * cache.ways);
}

template <class Policy>
__global__ void halve_kernel(mpe_cache cache, int64_t slots, int64_t cells) {
  if (!halving_due(cache)) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread_index(); i < slots; i += stride) {
    cache.meta[i] = Policy::halve(cache.meta[i]);
  }
  for (int64_t i = thread_index(); i < cells; i += stride) cache.sketch[i] >>= 1;
}

__global__ void halved_kernel(mpe_cache cache) {
  if (halving_due(cache)) cache.counters[1] = 0;
}

template <class Policy>
mpe_status admit(const Admission& admission, void* stream) {
  constexpr const char* kName = "cache admission";
  // All workspace is allocated first, so that a failure changes nothing.
  const int bits = bits_for(static_cast<uint64_t>(admission.cache.num_sets) + 1);
  PairSort<uint32_t, int32_t> sort(admission.n, bits, stream);
  Workspace<uint32_t> estimates(stream);
  Workspace<uint64_t> outcomes(stream);
  MPE_TRY(sort.acquire(kName));
  MPE_TRY(outcomes.acquire(admission.n, kName));
  if (Policy::kSketch) MPE_TRY(estimates.acquire(admission.n, kName));
  MPE_TRY(launch_one(kName, stream, tick_kernel, admission.cache, admission.unique.count,
                     Policy::kSketch ? 1 : 0));
  MPE_TRY(launch(kName, stream, admission.n, find_kernel<Policy>, admission, sort.keys(),
                 sort.values()));
  MPE_TRY(sort.run(kName));
  const uint32_t* sets = sort.keys();
  const int32_t* order = sort.values();
  if constexpr (Policy::kSketch) {
    MPE_TRY(launch(kName, stream, admission.n, estimate_kernel<Policy>, admission, sets, order,
                   estimates.get()));
  }
  const Misses misses{sets, order, estimates.get(), outcomes.get()};
  MPE_TRY(launch(kName, stream, admission.n, admit_kernel<Policy>, admission, misses));
  MPE_TRY(with_rounds(admission.tables.dim, [&](auto rounds) {
    return launch(kName, stream, admission.n, move_kernel<decltype(rounds)::value>, admission,
                  misses, tile_shift(admission.tables.dim));
  }));
  if constexpr (Policy::kSketch) {
    const int64_t slots = admission.cache.num_sets * admission.cache.ways;
    const int64_t cells = admission.cache.sketch_width * static_cast<int64_t>(kSketchRows);
    const int64_t threads = cells < 1 << 18 ? cells : 1 << 18;
    MPE_TRY(launch(kName, stream, threads, halve_kernel<Policy>, admission.cache, slots, cells));
    MPE_TRY(launch_one(kName, stream, halved_kernel, admission.cache));
  }
  return MPE_OK;
}

__global__ void refresh_kernel(mpe_cache cache, mpe_unique unique, const int32_t* slots,
                               int32_t* fresh) {
  const int64_t i = thread_index();
  const bool here = i < *unique.count;
  const int32_t slot = here ? slots[i] : 0;
  const int64_t found = warp_probe_each(cache, here ? unique.rows[i] : 0, here && slot < 0);
  if (here) fresh[i] = slot >= 0 ? slot : static_cast<int32_t>(found);
}

__global__ void release_kernel(mpe_cache cache, mpe_unique unique, const int32_t* slots) {
  const int64_t i = thread_index();
  if (i >= *unique.count || slots[i] < 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(cache.tags + slots[i]),
            static_cast<unsigned long long>(0) - static_cast<unsigned long long>(kTagPin));
}

// A tile takes as many slots as it has lanes and writes their rows back one by one.
template <bool kLong>
__global__ void __launch_bounds__(kThreads, 4)
    flush_kernel(const __grid_constant__ Tables tables, Rounding rounding, mpe_cache cache,
                 int32_t shift) {
  const Tile tile(shift);
  const int64_t slot = thread_index();
  const uint64_t tag = slot < cache.num_sets * cache.ways ? cache.tags[slot] : 0;
  const bool dirty = (tag & kTagDirty) != 0;
  const int32_t t = dirty ? tables.find(tag & kTagIdMask) : -1;
  count_lanes(tables, t, MPE_stat_write_backs, dirty);
  if (dirty) cache.tags[slot] = tag & ~kTagDirty;
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    const uint64_t id = tile.shuffle(tag, lane) & kTagIdMask;
    const int32_t owner = tile.shuffle(t, lane);
    if (owner < 0) continue;
    write_back<kLong>(tile, tables, rounding, id, owner,
                      Slot{tables, cache, static_cast<int32_t>(slot - tile.lane + lane)});
  }
}

__global__ void locate_kernel(mpe_cache cache, const uint64_t* keys, int64_t n, int32_t* slots) {
  const int64_t i = thread_index();
  const uint64_t key = i < n ? keys[i] : MPE_DROPPED;
  const int64_t slot = warp_probe_each(cache, key, key != MPE_DROPPED);
  if (i < n) slots[i] = static_cast<int32_t>(slot);
}

__global__ void scatter_kernel(mpe_unique unique, const int32_t* unique_slots, int64_t n,
                               int32_t* slots) {
  const int64_t count = *unique.count, used = unique.starts[count];
  each_position(unique.starts + 1, count, used < n ? used : n, [&](int64_t position, int64_t row) {
    slots[unique.positions[position]] = unique_slots[row];
  });
}

}  // namespace

mpe_status cache_admit(const mpe_group* group, const mpe_unique* unique, int64_t n, int32_t* slots,
                       void* stream) {
  const Admission admission{Tables(*group), Rounding(*group), *group->cache, *unique, n, slots};
  return with_policy(admission.cache.policy,
                     [&](auto policy) { return admit<decltype(policy)>(admission, stream); });
}

mpe_status cache_refresh(const mpe_group* group, const mpe_unique* unique, int64_t n,
                         const int32_t* slots, int32_t* fresh, void* stream) {
  return launch("cache_refresh", stream, n, refresh_kernel, *group->cache, *unique, slots, fresh);
}

mpe_status cache_release(const mpe_cache* cache, const mpe_unique* unique, int64_t n,
                         const int32_t* slots, void* stream) {
  return launch("cache_release", stream, n, release_kernel, *cache, *unique, slots);
}

mpe_status cache_flush(const mpe_group* group, void* stream) {
  const mpe_cache& cache = *group->cache;
  return with_rounds(group->dim, [&](auto rounds) {
    return launch("flush", stream, cache.num_sets * cache.ways,
                  flush_kernel<decltype(rounds)::value>, Tables(*group), Rounding(*group), cache,
                  tile_shift(group->dim));
  });
}

mpe_status cache_locate(const mpe_cache* cache, const uint64_t* keys, int64_t n, int32_t* slots,
                        void* stream) {
  return launch("cache_locate", stream, n, locate_kernel, *cache, keys, n, slots);
}

mpe_status scatter_slots(const mpe_unique* unique, const int32_t* unique_slots, int64_t n,
                         int32_t* slots, void* stream) {
  // Dropped lookups keep -1.
  MPE_TRY(fill(slots, 0xFF, n * static_cast<int64_t>(sizeof(int32_t)), stream));
  return launch("scatter_slots", stream, threads_for_positions(n), scatter_kernel, *unique,
                unique_slots, n, slots);
}

}  // namespace cuda
}  // namespace mpembed
