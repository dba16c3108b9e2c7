// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
//
// Admission is in two steps. A warp owns a set: its lanes hold the set's tags and policy state
// while the set's misses are given ways one after the other, in ascending order. Then tiles of
// lanes move the rows of all misses at once: victims back to their tables, new rows in. A slot
// changes hands once a batch, as it is pinned then, so that no two moves meet.
#include "cuda/admission.cuh"
#include "cuda/kernels.h"
#include "cuda/search.cuh"
#include "cuda/radix_sort.cuh"
#include "cuda/stats.cuh"

namespace mpembed {
namespace cuda {
namespace {

// Step 1.
__global__ void tick_kernel(mpe_cache c, const int64_t* unique, int32_t sketch) {
  ++c.counters[0];
  if (sketch) c.counters[1] += static_cast<uint64_t>(*unique);
}

// Statistics of 32 rows, a lane each. Rows ascend, so a table's lanes are neighbours.
__device__ void count_found(const Admission& a, int64_t u, bool here, bool hit) {
  const int32_t t = here ? a.tables.find(a.unique.rows[u]) : -1;
  const unsigned peers = lanes_of(t), hits = __ballot_sync(kFullMask, hit) & peers;
  if (!here || !leads(peers)) return;
  const mpe_table& table = a.tables.table[t];
  const int64_t rows = __popc(peers), found = __popc(hits);
  count_stat(table, MPE_stat_unique, rows);
  count_stat(table, MPE_stat_accesses, a.unique.starts[u + rows] - a.unique.starts[u]);
  count_stat(table, MPE_stat_hits, found);
  count_stat(table, MPE_stat_misses, rows - found);
}

// Step 2: finds all rows, pins and touches the hits. sets[u]: the set of a miss, else num_sets.
template <class P>
__global__ void find_kernel(Admission a, uint32_t* sets, int32_t* order) {
  const int64_t u = thread_index();
  const bool here = u < a.count();
  const uint64_t key = here ? a.unique.rows[u] : 0;
  const int64_t slot = warp_probe_each(a.cache, key, here);
  const bool hit = slot >= 0;
  count_found(a, u, here, hit);
  if (u >= a.n) return;
  order[u] = static_cast<int32_t>(u);
  sets[u] = static_cast<uint32_t>(here && !hit ? set_of(key, a.cache.num_sets) : a.cache.num_sets);
  if (here) a.slots[u] = static_cast<int32_t>(slot);
  if (!hit) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(a.cache.tags + slot),
            static_cast<unsigned long long>(kTagPin));
  a.cache.meta[slot] = P::on_hit(a.cache.meta[slot], a.clock());
}

// Step 3.
__global__ void sketch_add_kernel(Admission a, const uint32_t* sets, const int32_t* order) {
  const int64_t i = thread_index();
  if (i < a.n && sets[i] < a.cache.num_sets) sketch_add(a.cache, a.unique.rows[order[i]]);
}

__global__ void sketch_estimate_kernel(Admission a, const uint32_t* sets, const int32_t* order,
                                       uint32_t* estimates) {
  const int64_t i = thread_index();
  if (i < a.n && sets[i] < a.cache.num_sets) {
    estimates[i] = sketch_estimate(a.cache, a.unique.rows[order[i]]);
  }
}

// Step 4. A warp looks at 32 misses and admits those of the sets that begin there, with the next
// sets' tags on their way.
template <class P>
__global__ void admit_kernel(Admission a, Misses m) {
  constexpr int kAhead = 4;
  const int64_t i = thread_index(), first = i - lane_index();
  const Miss mine = Miss::load<P>(a, m, i);
  const bool head = mine.number < a.cache.num_sets && (i == 0 || m.sets[i - 1] != mine.number);
  const uint32_t clock = a.clock();
  for (unsigned left = __ballot_sync(kFullMask, head); left != 0;) {
    Set<P> sets[kAhead];
    int heads[kAhead];
    MPE_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      heads[j] = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      const uint32_t number = __shfl_sync(kFullMask, mine.number, heads[j] & (kWarp - 1));
      if (heads[j] >= 0) sets[j].load(a.cache, number);
    }
    MPE_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t number = __shfl_sync(kFullMask, mine.number, heads[j] & (kWarp - 1));
      for (int at = heads[j]; at >= 0; ++at) {
        // A set's misses may go on where the next warp looks.
        const Miss one = at < kWarp ? mine.from<P>(at) : Miss::load<P>(a, m, first + at);
        if (one.number != number) break;
        const uint64_t outcome = sets[j].admit(a, clock, one.u, one.key, one.estimate);
        if (lane_index() == 0) m.outcomes[first + at] = outcome;
      }
    }
  }
}

// The rows of step 4: a tile has as many misses as lanes, and moves their rows one after the other.
template <bool kLong>
__global__ void move_kernel(Admission a, Misses m, int32_t shift) {
  const Tile tile(shift);
  const int64_t i = thread_index();
  const bool miss = i < a.n && m.sets[i] < a.cache.num_sets;
  const int64_t u = miss ? m.order[i] : 0;
  const uint64_t outcome = miss ? m.outcomes[i] : kConflict;
  const bool evicts = (outcome & kTagIdMask) != kTagEmpty;
  Move mine{miss ? a.unique.rows[u] : 0, outcome, miss ? a.slots[u] : -1, -1, -1};
  if (miss) mine.table = a.tables.find(mine.key);
  if (evicts) mine.owner = a.tables.find(outcome & kTagIdMask);
  count_lanes(a.tables, mine.table, MPE_stat_conflict_misses, miss && outcome == kConflict);
  count_lanes(a.tables, mine.table, MPE_stat_rejected, outcome == kRejected);
  count_lanes(a.tables, mine.owner, MPE_stat_evictions, evicts);
  count_lanes(a.tables, mine.owner, MPE_stat_write_backs, evicts && (outcome & kTagDirty) != 0);
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    const Move move = mine.from(tile, lane);
    if (move.slot >= 0) move_row<kLong>(a, tile, move);
  }
}

// Step 5.
__device__ bool due(const mpe_cache& c) {
  return c.counters[1] >= kHalvingPeriod * static_cast<uint64_t>(c.num_sets * c.ways);
}

__global__ void halve_kernel(mpe_cache c, int64_t slots, int64_t cells) {
  if (!due(c)) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread_index(); i < slots; i += stride) c.meta[i] >>= 1;
  for (int64_t i = thread_index(); i < cells; i += stride) c.sketch[i] >>= 1;
}

__global__ void halved_kernel(mpe_cache c) {
  if (due(c)) c.counters[1] = 0;
}

template <class P>
mpe_status admit(const Admission& a, void* stream) {
  constexpr const char* kName = "cache admission";
  // All workspace first: for want of it nothing has changed.
  const int bits = bits_for(static_cast<uint64_t>(a.cache.num_sets) + 1);
  PairSort<uint32_t, int32_t> sort(a.n, bits, stream);
  Workspace<uint32_t> estimates(stream);
  Workspace<uint64_t> outcomes(stream);
  MPE_TRY(sort.take(kName));
  MPE_TRY(outcomes.take(a.n, kName));
  if (P::kSketch) MPE_TRY(estimates.take(a.n, kName));
  MPE_TRY(launch_one(kName, stream, tick_kernel, a.cache, a.unique.count, P::kSketch ? 1 : 0));
  MPE_TRY(launch(kName, stream, a.n, find_kernel<P>, a, sort.keys(), sort.values()));
  MPE_TRY(sort.run(kName));
  const uint32_t* s = sort.keys();
  const int32_t* o = sort.values();
  if (P::kSketch) {
    MPE_TRY(launch(kName, stream, a.n, sketch_add_kernel, a, s, o));
    MPE_TRY(launch(kName, stream, a.n, sketch_estimate_kernel, a, s, o, estimates.get()));
  }
  const Misses misses{s, o, estimates.get(), outcomes.get()};
  MPE_TRY(launch(kName, stream, a.n, admit_kernel<P>, a, misses));
  MPE_TRY(with_rounds(a.tables.dim, [&](auto rounds) {
    return launch(kName, stream, a.n, move_kernel<decltype(rounds)::value>, a, misses,
                  tile_shift(a.tables.dim));
  }));
  if (!P::kSketch) return MPE_OK;
  const int64_t slots = a.cache.num_sets * a.cache.ways;
  const int64_t cells = a.cache.sketch_width * static_cast<int64_t>(kSketchRows);
  const int64_t threads = cells < 1 << 18 ? cells : 1 << 18;
  MPE_TRY(launch(kName, stream, threads, halve_kernel, a.cache, slots, cells));
  return launch_one(kName, stream, halved_kernel, a.cache);
}

__global__ void refresh_kernel(mpe_cache c, mpe_unique u, const int32_t* slots, int32_t* fresh) {
  const int64_t i = thread_index();
  const bool here = i < *u.count;
  const int32_t slot = here ? slots[i] : 0;
  const int64_t found = warp_probe_each(c, here ? u.rows[i] : 0, here && slot < 0);
  if (here) fresh[i] = slot >= 0 ? slot : static_cast<int32_t>(found);
}

__global__ void release_kernel(mpe_cache c, mpe_unique u, const int32_t* slots) {
  const int64_t i = thread_index();
  if (i >= *u.count || slots[i] < 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(c.tags + slots[i]),
            static_cast<unsigned long long>(0) - static_cast<unsigned long long>(kTagPin));
}

// A tile has as many slots as lanes, and writes their rows back one after the other.
template <bool kLong>
__global__ void flush_kernel(Tables tables, Rounding rounding, mpe_cache c, int32_t shift) {
  const Tile tile(shift);
  const int64_t slot = thread_index();
  const uint64_t tag = slot < c.num_sets * c.ways ? c.tags[slot] : 0;
  const bool dirty = (tag & kTagDirty) != 0;
  const int32_t t = dirty ? tables.find(tag & kTagIdMask) : -1;
  count_lanes(tables, t, MPE_stat_write_backs, dirty);
  if (dirty) c.tags[slot] = tag & ~kTagDirty;
  const float* rows = c.rows + (slot - tile.lane) * tables.dim;
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    const uint64_t id = tile.shuffle(tag, lane) & kTagIdMask;
    const int32_t owner = tile.shuffle(t, lane);
    const float* cached = rows + static_cast<int64_t>(lane) * tables.dim;
    if (owner >= 0) write_back<kLong>(tile, tables, rounding, id, owner, cached);
  }
}

__global__ void locate_kernel(mpe_cache c, const uint64_t* keys, int64_t n, int32_t* slots) {
  const int64_t i = thread_index();
  const uint64_t key = i < n ? keys[i] : MPE_DROPPED;
  const int64_t slot = warp_probe_each(c, key, key != MPE_DROPPED);
  if (i < n) slots[i] = static_cast<int32_t>(slot);
}

__global__ void scatter_kernel(mpe_unique u, const int32_t* unique_slots, int64_t n,
                               int32_t* slots) {
  const int64_t count = *u.count, used = u.starts[count];
  each_place(u.starts + 1, count, used < n ? used : n,
             [&](int64_t place, int64_t row) { slots[u.positions[place]] = unique_slots[row]; });
}

}  // namespace

mpe_status cache_admit(const mpe_group* g, const mpe_unique* u, int64_t n, int32_t* slots,
                       void* stream) {
  const Admission a{Tables(*g), Rounding(*g), *g->cache, *u, n, slots};
  return with_policy(a.cache.policy, [&](auto policy) {
    return admit<decltype(policy)>(a, stream);
  });
}

mpe_status cache_refresh(const mpe_group* g, const mpe_unique* u, int64_t n, const int32_t* slots,
                         int32_t* fresh, void* stream) {
  return launch("cache_refresh", stream, n, refresh_kernel, *g->cache, *u, slots, fresh);
}

mpe_status cache_release(const mpe_cache* c, const mpe_unique* u, int64_t n, const int32_t* slots,
                         void* stream) {
  return launch("cache_release", stream, n, release_kernel, *c, *u, slots);
}

mpe_status cache_flush(const mpe_group* g, void* stream) {
  const mpe_cache& c = *g->cache;
  return with_rounds(g->dim, [&](auto rounds) {
    return launch("flush", stream, c.num_sets * c.ways, flush_kernel<decltype(rounds)::value>,
                  Tables(*g), Rounding(*g), c, tile_shift(g->dim));
  });
}

mpe_status cache_locate(const mpe_cache* c, const uint64_t* keys, int64_t n, int32_t* slots,
                        void* stream) {
  return launch("cache_locate", stream, n, locate_kernel, *c, keys, n, slots);
}

mpe_status scatter_slots(const mpe_unique* u, const int32_t* unique_slots, int64_t n,
                         int32_t* slots, void* stream) {
  // Dropped lookups keep -1.
  MPE_TRY(fill(slots, 0xFF, n * static_cast<int64_t>(sizeof(int32_t)), stream));
  return launch("scatter_slots", stream, threads_of_places(n), scatter_kernel, *u, unique_slots, n,
                slots);
}

}  // namespace cuda
}  // namespace mpembed
