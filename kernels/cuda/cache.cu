// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
//
// A warp owns a set: its lanes hold the set's tags and policy state while the set's misses are
// admitted one after the other, in ascending order.
#include "cuda/kernels.h"
#include "cuda/probe.cuh"
#include "cuda/row.cuh"
#include "cuda/sketch.cuh"
#include "cuda/sort.cuh"

namespace mpembed {
namespace cuda {
namespace {

struct Admission {
  Tables tables;
  Rounding rounding;
  mpe_cache cache;
  mpe_unique unique;
  int64_t n;  // room for unique rows
  int32_t* slots;

  __device__ uint32_t clock() const { return static_cast<uint32_t>(cache.counters[0]); }
  __device__ int64_t count() const { return *unique.count; }
};

// Step 1.
__global__ void tick_kernel(mpe_cache c, const int64_t* unique, int32_t sketch) {
  ++c.counters[0];
  if (sketch) c.counters[1] += static_cast<uint64_t>(*unique);
}

// Statistics of 32 rows, a lane each: lanes of one table add up first. Rows ascend, so a table's
// lanes are neighbours.
__device__ void count_found(const Admission& a, int64_t u, bool here, bool hit) {
  const int32_t t = here ? a.tables.find(a.unique.rows[u]) : -1;
  const unsigned peers = __match_any_sync(kFullMask, static_cast<unsigned>(t));
  const unsigned hits = __ballot_sync(kFullMask, hit) & peers;
  if (!here || __ffs(static_cast<int>(peers)) - 1 != lane_index()) return;
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
  sets[u] = static_cast<uint32_t>(here && !hit ? set_of(a.cache, key) : a.cache.num_sets);
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

// A warp's counts of one table, added up before they go to memory.
class WarpStats {
 public:
  __device__ explicit WarpStats(const Tables& tables) : tables_(tables) {}
  __device__ void add(int32_t t, int stat) {
    if (t != table_) {
      commit();
      table_ = t;
    }
    ++counts_[stat - MPE_stat_conflict_misses];
  }
  __device__ void commit() {
    for (int i = 0; i < kCounts; ++i) {
      if (lane_index() == i && table_ >= 0) {
        count_stat(tables_.table[table_], MPE_stat_conflict_misses + i, counts_[i]);
      }
      counts_[i] = 0;
    }
  }

 private:
  // conflict_misses, rejected, evictions, write_backs: neighbours in the registry.
  static constexpr int kCounts = MPE_stat_write_backs - MPE_stat_conflict_misses + 1;
  const Tables& tables_;
  int32_t table_ = -1;
  int32_t counts_[kCounts] = {};
};

__device__ void write_back(const Tables& tables, const Rounding& rounding, const float* cached,
                           uint64_t id, const mpe_table& table) {
  const Tile<kWarp> tile;
  const int64_t number = static_cast<int64_t>(id) - table.base, dim = tables.dim;
  with_format(table.precision, [&](auto f) {
    using F = typename decltype(f)::type;
    write_row<F>(tile, rounding, kDomainRow, table, number, dim,
                 table.rows + number * F::row_bytes(dim),
                 [&](int64_t k) { return cached[tile.lane + kWarp * k]; });
  });
}

__device__ void load_row(const Tables& tables, const mpe_table& table, uint64_t key,
                         float* cached) {
  const int64_t number = static_cast<int64_t>(key) - table.base, dim = tables.dim;
  with_format(table.precision, [&](auto f) {
    using F = typename decltype(f)::type;
    const RowReader<F> row(table.rows + number * F::row_bytes(dim), dim);
    for (int64_t c = lane_index(); c < dim; c += kWarp) cached[c] = row(c);
  });
}

// One set's tags and policy state, a lane a way.
template <class P>
class Set {
 public:
  __device__ Set(const Admission& a, int64_t set)
      : a_(a), first_(set * a.cache.ways), lane_(lane_index()), way_(lane_ < a.cache.ways) {
    tag_ = way_ ? a.cache.tags[first_ + lane_] : 0;
    meta_ = way_ ? a.cache.meta[first_ + lane_] : 0;
  }

  // The way to fill for a miss, or -1: the lowest empty one, else the victim with the smallest
  // rank.
  __device__ int choose() const {
    const bool empty = way_ && (tag_ & kTagIdMask) == kTagEmpty;
    const unsigned empties = __ballot_sync(kFullMask, empty);
    if (empties != 0) return __ffs(static_cast<int>(empties)) - 1;
    const bool free = way_ && (tag_ & kTagPinMask) == 0;
    const uint32_t rank = free ? P::rank(meta_, a_.clock()) : 0;
    const unsigned candidates = __ballot_sync(kFullMask, free);
    if (candidates == 0) return -1;
    uint32_t best = free ? rank : UINT32_MAX;
    for (int s = kWarp / 2; s > 0; s >>= 1) {
      const uint32_t other = __shfl_xor_sync(kFullMask, best, s);
      best = other < best ? other : best;
    }
    return __ffs(static_cast<int>(__ballot_sync(kFullMask, free && rank == best))) - 1;
  }

  // Step 4 for one miss.
  __device__ void admit(int64_t u, uint32_t estimate, WarpStats& stats) {
    const uint64_t key = a_.unique.rows[u];
    const int32_t t = a_.tables.find(key);
    const int way = choose();
    if (way < 0) return stats.add(t, MPE_stat_conflict_misses);
    const int64_t slot = first_ + way;
    const uint64_t old = __shfl_sync(kFullMask, static_cast<unsigned long long>(tag_), way);
    float* cached = a_.cache.rows + slot * a_.tables.dim;
    if ((old & kTagIdMask) != kTagEmpty) {
      const uint32_t state = __shfl_sync(kFullMask, meta_, way);
      if (!P::admits(estimate, state)) return stats.add(t, MPE_stat_rejected);
      evict(old, state, cached, stats);
    }
    load_row(a_.tables, a_.tables.table[t], key, cached);
    if (lane_ != way) return;
    tag_ = key | kTagPin;
    meta_ = P::on_admit(a_.clock(), estimate);
    a_.cache.tags[slot] = tag_;
    a_.cache.meta[slot] = meta_;
    a_.slots[u] = static_cast<int32_t>(slot);
  }

 private:
  __device__ void evict(uint64_t old, uint32_t state, const float* cached, WarpStats& stats) {
    const uint64_t id = old & kTagIdMask;
    const int32_t owner = a_.tables.find(id);
    stats.add(owner, MPE_stat_evictions);
    if ((old & kTagDirty) != 0) {
      write_back(a_.tables, a_.rounding, cached, id, a_.tables.table[owner]);
      stats.add(owner, MPE_stat_write_backs);
    }
    if (P::kSketch && lane_ < static_cast<int>(kSketchRows)) {
      sketch_raise(a_.cache, id, static_cast<uint32_t>(lane_), state);
    }
  }

  const Admission& a_;
  int64_t first_;
  int lane_;
  bool way_;
  uint64_t tag_;
  uint32_t meta_;
};

// Step 4. sets, order: the misses by set, within a set by row. A warp looks at 32 of them and
// admits those of the sets that begin there.
template <class P>
__global__ void admit_kernel(Admission a, const uint32_t* sets, const int32_t* order,
                             const uint32_t* estimates) {
  const int64_t i = thread_index();
  const bool miss = i < a.n && sets[i] < a.cache.num_sets;
  const bool head = miss && (i == 0 || sets[i - 1] != sets[i]);
  WarpStats stats(a.tables);
  for (unsigned left = __ballot_sync(kFullMask, head); left != 0; left &= left - 1) {
    int64_t j = i - lane_index() + __ffs(static_cast<int>(left)) - 1;
    const uint32_t number = sets[j];
    Set<P> set(a, number);
    for (; j < a.n && sets[j] == number; ++j) {
      set.admit(order[j], P::kSketch ? estimates[j] : 0, stats);
    }
  }
  stats.commit();
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
  MPE_TRY(sort.take(kName));
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
  MPE_TRY(launch(kName, stream, a.n, admit_kernel<P>, a, s, o, estimates.get()));
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

__global__ void flush_kernel(Tables tables, Rounding rounding, mpe_cache c) {
  const int64_t slot = thread_index();
  const uint64_t tag = slot < c.num_sets * c.ways ? c.tags[slot] : 0;
  WarpStats stats(tables);
  for (unsigned left = __ballot_sync(kFullMask, (tag & kTagDirty) != 0); left != 0;
       left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    const uint64_t one = __shfl_sync(kFullMask, static_cast<unsigned long long>(tag), lane);
    const uint64_t id = one & kTagIdMask;
    const int32_t t = tables.find(id);
    const float* cached = c.rows + (slot - lane_index() + lane) * tables.dim;
    write_back(tables, rounding, cached, id, tables.table[t]);
    stats.add(t, MPE_stat_write_backs);
  }
  if ((tag & kTagDirty) != 0) c.tags[slot] = tag & ~kTagDirty;
  stats.commit();
}

__global__ void locate_kernel(mpe_cache c, const uint64_t* keys, int64_t n, int32_t* slots) {
  const int64_t i = thread_index();
  const uint64_t key = i < n ? keys[i] : MPE_DROPPED;
  const int64_t slot = warp_probe_each(c, key, key != MPE_DROPPED);
  if (i < n) slots[i] = static_cast<int32_t>(slot);
}

__global__ void scatter_kernel(mpe_unique u, const int32_t* unique_slots, int64_t n,
                               int32_t* slots) {
  const int64_t j = thread_index();
  const int64_t count = *u.count;
  if (j >= n || j >= u.starts[count]) return;
  const int64_t row = first_at_least(count, j + 1, [&](int64_t i) { return u.starts[i + 1]; });
  slots[u.positions[j]] = unique_slots[row];
}

}  // namespace

mpe_status cache_admit(const mpe_group* g, const mpe_unique* u, int64_t n, int32_t* slots,
                       void* stream) {
  const Admission a{Tables(*g), Rounding(*g), *g->cache, *u, n, slots};
  return with_policy(a.cache.policy, [&](auto policy) {
    return admit<typename decltype(policy)::type>(a, stream);
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
  return launch("flush", stream, c.num_sets * c.ways, flush_kernel, Tables(*g), Rounding(*g), c);
}

mpe_status cache_locate(const mpe_cache* c, const uint64_t* keys, int64_t n, int32_t* slots,
                        void* stream) {
  return launch("cache_locate", stream, n, locate_kernel, *c, keys, n, slots);
}

mpe_status scatter_slots(const mpe_unique* u, const int32_t* unique_slots, int64_t n,
                         int32_t* slots, void* stream) {
  // Dropped lookups keep -1.
  MPE_TRY(fill(slots, 0xFF, n * static_cast<int64_t>(sizeof(int32_t)), stream));
  return launch("scatter_slots", stream, n, scatter_kernel, *u, unique_slots, n, slots);
}

}  // namespace cuda
}  // namespace mpembed
