// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
//
// Admission has three parts. All rows are found at once, and each set's misses are listed. Then a
// eight lanes own a set: they hold the set's tags and policy state while the set's misses get ways
// one after the other, in ascending order. Then tiles of lanes move the rows of all admitted misses
// in parallel: victims back to their tables, new rows in. A slot is pinned once it is taken, so no
// two misses of a batch move rows through the same slot.
#include "cuda/admission.cuh"
#include "cuda/kernels.h"
#include "cuda/search.cuh"
#include "cuda/stats.cuh"

namespace mpembed {
namespace cuda {
namespace {

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

// Steps 2 and, for the estimates of misses, 3: finds all rows, pins and touches the hits, and lists
// the misses of each set. No cell of the sketch changes here. dropped, step, what is found: or
// NULL.
template <class Policy>
__global__ void find_kernel(Admission admission, Misses misses, const int64_t* dropped,
                            uint64_t* step, mpe_found found) {
  const int64_t u = thread_index();
  if (u == 0 && step != nullptr) ++*step;
  if (u == 0 && found.step != nullptr) *found.step = *admission.rounding.step;
  if (u < admission.tables.count && dropped != nullptr) {
    count_stat(admission.tables.table[u], MPE_stat_dropped, dropped[u]);
  }
  const bool here = u < admission.count();
  const uint64_t key = here ? admission.unique.rows[u] : 0;
  const int64_t slot = warp_probe_each(admission.cache, key, here);
  const bool hit = slot >= 0, miss = here && !hit;
  count_found(admission, u, here, hit);
  if (here) admission.slots[u] = static_cast<int32_t>(slot);
  if (here && found.slots != nullptr) found.slots[u] = static_cast<int32_t>(slot);
  if (hit) {
    atomicAdd(reinterpret_cast<unsigned long long*>(admission.cache.tags + slot),
              static_cast<unsigned long long>(kTagPin));
    admission.cache.meta[slot] = Policy::on_hit(admission.cache.meta[slot], admission.clock());
  }
  uint32_t set = 0, before = 1;
  if (miss) {
    set = static_cast<uint32_t>(set_of(key, admission.cache.num_sets));
    before = atomicExch(misses.first + set, static_cast<uint32_t>(u) + 1);
    misses.next[u] = before;
    if constexpr (Policy::kSketch) {
      misses.estimates[u] = Policy::next(sketch_estimate(admission.cache, key));
    }
  }
  // The first miss of a set lists the set.
  const unsigned listed = __ballot_sync(kFullMask, before == 0);
  if (listed == 0) return;
  uint32_t place = 0;
  if (leads(listed)) place = atomicAdd(&misses.counts->sets, static_cast<uint32_t>(__popc(listed)));
  place = __shfl_sync(kFullMask, place, __ffs(static_cast<int>(listed)) - 1);
  if (before == 0) misses.sets[place + __popc(listed & ((1u << lane_index()) - 1))] = set;
}

// Blocks that a multiprocessor should hold: as many as the registers of four sets allow.
template <class Policy>
constexpr int admit_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return 4;
#endif
  return Policy::kSketch ? 5 : 4;
}

// The rest of step 3, and step 4: cells only rise, so their order does not matter. Eight lanes give
// a set's ways to its misses in ascending order; each time they look for the next one that gets
// one.
template <class Policy>
__global__ void __launch_bounds__(kThreads, (admit_blocks<Policy>()))
    admit_kernel(const __grid_constant__ Admission admission,
                 const __grid_constant__ Misses misses) {
  const SetLanes lanes;
  const int64_t number = thread_index() >> kSetShift;
  const uint32_t listed = misses.sets[number];  // not only if it exists: two loads at once
  const bool exists = number < misses.counts->sets;
  const uint32_t clock = admission.clock(), number_of_set = exists ? listed : 0;
  Set<Policy> set(admission.cache, number_of_set);
  const MissList list(admission, misses, exists ? misses.first[number_of_set] : 0);
  if constexpr (Policy::kSketch) {
    list.each([&](int32_t u) {
      for (uint32_t j = 0; u >= 0 && j < kSketchRows; ++j) {
        sketch_raise(admission.cache, admission.unique.rows[u], j, misses.estimates[u]);
      }
    });
  }
  AdmittedRows admitted(misses);
  uint32_t next = 0, taken = 0;  // the misses before `next` had their turn
  bool full = false, open = list.count() > 0;
  while (__any_sync(kFullMask, open) != 0) {
    const int chosen = set.choose(clock), way = chosen < 0 ? 0 : chosen;
    full = full || (open && chosen < 0);
    open = open && chosen >= 0;
    const uint64_t old = set.tag(way);
    const uint32_t victim = set.state(way);
    const bool empty = (old & kTagIdMask) == kTagEmpty;
    uint32_t best = UINT32_MAX;
    if (open) {
      list.each([&](int32_t found) {
        const uint32_t u = static_cast<uint32_t>(found);
        if (found < 0 || u < next || u >= best) return;
        if (empty || Policy::admits(Policy::kSketch ? misses.estimates[u] : 0, victim)) best = u;
      });
    }
    best = lanes.smallest(best);
    open = open && best != UINT32_MAX;  // else the row in it stays
    const uint64_t key = list.key(best);
    if (open) {
      if constexpr (Policy::kSketch) {
        if (!empty && lanes.lane < static_cast<int>(kSketchRows)) {
          sketch_raise(admission.cache, old & kTagIdMask, static_cast<uint32_t>(lanes.lane),
                       Policy::on_evict(victim));
        }
      }
      const int32_t slot = set.fill(way, key, clock, Policy::kSketch ? misses.estimates[best] : 0);
      if (admitted.add(Admitted{key, old, slot})) admission.slots[best] = slot;
      next = best + 1;
      open = ++taken < list.count();
    }
    admitted.write(open ? kSetLanes : 1);
  }
  __syncwarp();  // the slots
  const bool lacks = taken < list.count();
  for (uint32_t first = 0; __any_sync(kFullMask, lacks && first < list.count()) != 0;
       first += kSetLanes) {
    const int32_t u = lacks ? list.at(first) : -1;
    const bool left = u >= 0 && admission.slots[u] < 0;
    const int32_t t = left ? admission.tables.find(admission.unique.rows[u]) : -1;
    const bool conflict = left && full && static_cast<uint32_t>(u) >= next;
    count_lanes(admission.tables, t, MPE_stat_conflict_misses, conflict);
    count_lanes(admission.tables, t, MPE_stat_rejected, left && !conflict);
  }
}

// Step 1, late, and the rows of step 4: a tile takes as many admitted misses as it has lanes and
// moves their rows one by one.
template <bool kLong>
__global__ void __launch_bounds__(kThreads, kLong ? 3 : 4)
    move_kernel(const __grid_constant__ Admission admission, Misses misses, int32_t shift,
                int32_t sketch) {
  const Tile tile(shift);
  const int64_t i = thread_index(), count = misses.counts->admitted;
  if (i == 0) {
    ++admission.cache.counters[0];
    if (sketch) admission.cache.counters[1] += static_cast<uint64_t>(admission.count());
  }
  if (i - lane_index() >= count) return;
  const Admitted admitted = i < count ? misses.admitted[i] : Admitted{0, kTagEmpty, -1};
  const bool evicts = (admitted.old & kTagIdMask) != kTagEmpty;
  Move mine{admitted.key, admitted.old, admitted.slot, -1, -1};
  if (i < count) mine.table = admission.tables.find(mine.key);
  if (evicts) mine.owner = admission.tables.find(admitted.old & kTagIdMask);
  count_lanes(admission.tables, mine.owner, MPE_stat_evictions, evicts);
  count_lanes(admission.tables, mine.owner, MPE_stat_write_backs,
              evicts && (admitted.old & kTagDirty) != 0);
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    const Move move = mine.from(tile, lane);
    if (move.slot >= 0) move_row<kLong>(admission, tile, move);
  }
}

// Step 5.
template <class Policy>
__global__ void halve_kernel(mpe_cache cache, int64_t slots, int64_t cells, int32_t* finished) {
  if (cache.counters[1] < kHalvingPeriod * static_cast<uint64_t>(slots)) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread_index(); i < slots; i += stride) {
    cache.meta[i] = Policy::halve(cache.meta[i]);
  }
  for (int64_t i = thread_index(); i < cells; i += stride) cache.sketch[i] >>= 1;
  if (is_last_block(finished) && threadIdx.x == 0) cache.counters[1] = 0;  // all have read it
}

template <class Policy>
mpe_status admit(const Admission& admission, const int64_t* dropped, uint64_t* step,
                 const mpe_found& found, void* stream) {
  constexpr const char* kName = "cache admission";
  constexpr int32_t kSketch = Policy::kSketch ? 1 : 0;
  const mpe_cache& cache = admission.cache;
  const int64_t n = admission.n, slots = cache.num_sets * cache.ways;
  const int64_t most_sets = n < cache.num_sets ? n : cache.num_sets, most = n < slots ? n : slots;
  // All workspace is allocated first, so that a failure changes nothing.
  Workspace workspace(stream);
  const auto counts = workspace.plan<Misses::Counts>(1);
  const auto first = workspace.plan<uint32_t>(cache.num_sets);
  const auto sets = workspace.plan<uint32_t>(most_sets + (kThreads >> kSetShift));
  const auto next = workspace.plan<uint32_t>(n), estimates = workspace.plan<uint32_t>(n * kSketch);
  const auto rows = workspace.plan<int32_t>(n);
  const auto admitted = workspace.plan<Admitted>(most);
  MPE_TRY(workspace.acquire(kName));
  const Misses misses{workspace.get(first),     workspace.get(counts), workspace.get(next),
                      workspace.get(estimates), workspace.get(rows),   workspace.get(sets),
                      workspace.get(admitted)};
  MPE_TRY(fill(misses.counts, 0, static_cast<int64_t>(next.offset - counts.offset), stream));
  // The clock advances also if the batch has no lookups.
  const int64_t tables = dropped != nullptr ? admission.tables.count : 1;
  MPE_TRY(launch(kName, stream, n > tables ? n : tables, find_kernel<Policy>, admission, misses,
                 dropped, step, found));
  MPE_TRY(launch(kName, stream, most_sets << kSetShift, admit_kernel<Policy>, admission, misses));
  MPE_TRY(with_rounds(admission.tables.dim, [&](auto rounds) {
    return launch(kName, stream, most > 0 ? most : 1, move_kernel<decltype(rounds)::value>,
                  admission, misses, tile_shift(admission.tables.dim), kSketch);
  }));
  if constexpr (Policy::kSketch) {
    const int64_t cells = cache.sketch_width * static_cast<int64_t>(kSketchRows);
    const int64_t threads = cells < 1 << 18 ? cells : 1 << 18;
    MPE_TRY(launch(kName, stream, threads, halve_kernel<Policy>, cache, slots, cells,
                   &misses.counts->halved));
  }
  return MPE_OK;
}

__global__ void refresh_kernel(mpe_cache cache, mpe_unique unique, const int32_t* slots,
                               int32_t* fresh) {
  const int64_t i = thread_index();
  const bool here = i < *unique.count;
  const int32_t slot = here ? slots[i] : 0;
  const int32_t now = refreshed_slot(cache, unique, i, here, slot);
  if (here) fresh[i] = now;
}

__global__ void release_kernel(mpe_cache cache, mpe_unique unique, const int32_t* slots) {
  const int64_t i = thread_index();
  if (i < *unique.count && slots[i] >= 0) unpin(cache, slots[i]);
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
  const uint32_t count = static_cast<uint32_t>(*unique.count);
  const auto end = [&](uint32_t row) { return unique.starts[row + 1]; };
  const auto find = [&](uint32_t place) { return warp_first_at_least(count, place, end); };
  const auto visit = [&](uint32_t position, uint32_t row) {
    // Behind the rows' positions come those of the dropped lookups.
    slots[unique.positions[position]] = row < count ? unique_slots[row] : -1;
  };
  each_position(thread_index() / kWarp, find, end, count, static_cast<uint32_t>(n), visit);
}

}  // namespace

mpe_status cache_admit(const mpe_group* group, const mpe_unique* unique, int64_t n,
                       const int64_t* dropped, uint64_t* step, int32_t* slots,
                       const mpe_found* found, void* stream) {
  const Admission admission{Tables(*group), Rounding(*group), *group->cache, *unique, n, slots};
  return with_policy(admission.cache.policy, [&](auto policy) {
    return admit<decltype(policy)>(admission, dropped, step,
                                   found != nullptr ? *found : mpe_found{}, stream);
  });
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
  return launch("scatter_slots", stream, threads_for_positions(n), scatter_kernel, *unique,
                unique_slots, n, slots);
}

}  // namespace cuda
}  // namespace mpembed
