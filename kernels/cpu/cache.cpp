// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
// The steps of admission are those of docs/numerics.md, section 6.
#include "cpu/admission.h"
#include "cpu/kernels.h"
#include "cpu/radix_sort.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskRows = 1024;
constexpr int64_t kPrefetchDistance = 8;

inline void prefetch_set(const mpe_cache& cache, uint64_t key) {
  const int64_t first_slot = set_of(key, cache.num_sets) * cache.ways;
  prefetch_bytes(cache.tags + first_slot, cache.ways * 8, false);
}

inline void prefetch_slot(const mpe_cache& cache, int64_t slot) {
  if (slot < 0) return;
  __builtin_prefetch(cache.tags + slot, 1, 3);
  __builtin_prefetch(cache.meta + slot, 1, 3);
}

inline int32_t find_slot(const mpe_cache& cache, uint64_t key) {
  return static_cast<int32_t>(probe(cache.tags, cache.num_sets, cache.ways, key));
}

// Finds the slots of all rows, changing nothing else. Returns the number of misses.
int64_t find_slots(const Admission& admission) {
  const uint64_t* rows = admission.unique.rows;
  const int64_t count = admission.count;
  int64_t misses = 0;
  parallel_range(count, task_count(count, kTaskRows), [&](int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (i + kPrefetchDistance < count) prefetch_set(admission.cache, rows[i + kPrefetchDistance]);
      const int32_t slot = find_slot(admission.cache, rows[i]);
      admission.slots[i] = slot;
      n += slot < 0 ? 1 : 0;
    }
    __atomic_fetch_add(&misses, n, __ATOMIC_RELAXED);
  });
  return misses;
}

// Step 2: hits are pinned and touched.
template <class Policy>
void touch_hits(const Admission& admission, int64_t begin, int64_t end, TaskStats& stats) {
  const mpe_cache& cache = admission.cache;
  const mpe_unique& unique = admission.unique;
  int32_t table = 0;
  int64_t* counts = stats.counters(table);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t owner = find_table(admission.group, unique.rows[i], table);
    if (owner != table) counts = stats.counters(table = owner);
    if (i + kPrefetchDistance < end) prefetch_slot(cache, admission.slots[i + kPrefetchDistance]);
    const int64_t slot = admission.slots[i];
    ++counts[MPE_stat_unique];
    counts[MPE_stat_accesses] += unique.starts[i + 1] - unique.starts[i];
    ++counts[slot < 0 ? MPE_stat_misses : MPE_stat_hits];
    if (slot < 0) continue;
    cache.tags[slot] += kTagPin;
    cache.meta[slot] = Policy::on_hit(cache.meta[slot], admission.clock);
  }
}

// The misses in ascending order: by set, within a set by row id.
uint64_t* sorted_misses(const Admission& admission, int64_t misses, uint64_t* list,
                        uint64_t* spare) {
  const int64_t num_sets = admission.cache.num_sets;
  int64_t n = 0;
  for (int64_t i = 0; i < admission.count; ++i) {
    if (admission.slots[i] >= 0) continue;
    list[n++] = make_miss(set_of(admission.unique.rows[i], num_sets), i);
  }
  return radix_sort(list, spare, misses, 32, bits_for(static_cast<uint64_t>(num_sets)));
}

// Steps 3 and 4. sorted: the misses; hashes and estimates: room for as many if the policy has a
// sketch.
template <class Policy>
void admit_misses(const Admission& admission, const uint64_t* sorted, int64_t misses,
                  uint64_t* hashes, uint32_t* estimates, const EncoderWorkspace& workspace) {
  const mpe_cache& cache = admission.cache;
  const int64_t tasks = task_count(misses, kTaskRows);
  if constexpr (Policy::kSketch) {
    const uint64_t* rows = admission.unique.rows;
    // All estimates are read before a cell changes; then the order does not matter.
    parallel_each(misses, tasks, [=](int64_t i) {
      hashes[i] = splitmix64(rows[miss_row(sorted[i])]);
      estimates[i] = Policy::next(sketch_estimate(cache, hashes[i]));
    });
  }
  // A set belongs to one task: a border moves up to the next place where a set begins.
  const auto next_set = [&](int64_t i) {
    while (i > 0 && i < misses && miss_set(sorted[i]) == miss_set(sorted[i - 1])) ++i;
    return i;
  };
  parallel_range(misses, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    AdmissionTask<Policy> admitting(admission, workspace, task);
    const int64_t last = next_set(end);
    for (int64_t i = next_set(begin); i < last; ++i) {
      // A row that was seen before is likely to be admitted; most others are not.
      const int64_t ahead = i + kPrefetchDistance;
      if (ahead < misses && (!Policy::kSketch || estimates[ahead] > 1)) {
        admitting.prefetch(miss_row(sorted[ahead]));
      }
      if (Policy::kSketch) sketch_raise(cache, hashes[i], estimates[i]);
      admitting.admit(sorted[i], Policy::kSketch ? estimates[i] : 0);
    }
  });
}

// Step 5.
template <class Policy>
void halve(const mpe_cache& cache) {
  const int64_t slots = cache.num_sets * cache.ways;
  for (int64_t i = 0; i < slots; ++i) cache.meta[i] = Policy::halve(cache.meta[i]);
  for (int64_t i = 0; i < cache.sketch_width * kSketchRows; ++i) cache.sketch[i] >>= 1;
}

void count_dropped(const mpe_group& group, const int64_t* dropped) {
  for (int32_t t = 0; dropped != nullptr && t < group.num_tables; ++t) {
    if (int64_t* stats = group.tables[t].stats) stats[MPE_stat_dropped] += dropped[t];
  }
}

template <class Policy>
mpe_status admit(const Admission& admission, const int64_t* dropped, uint64_t* step,
                 const mpe_found* found) {
  const mpe_cache& cache = admission.cache;
  const int64_t count = admission.count, misses = find_slots(admission);
  if (found != nullptr && count > 0) {
    memcpy(found->slots, admission.slots, static_cast<size_t>(count) * sizeof(int32_t));
  }
  const EncoderWorkspace workspace(task_count(misses, kTaskRows), admission.group.dim, false);
  Workspace<uint64_t> list(misses), spare(misses);
  Workspace<uint32_t> estimates(Policy::kSketch ? misses : 0);
  if (!workspace.ok() || !list.ok() || !spare.ok() || !estimates.ok()) return MPE_ERR_MEMORY;
  const uint64_t* sorted = sorted_misses(admission, misses, list.get(), spare.get());
  if (sorted == nullptr) return MPE_ERR_MEMORY;

  if (step != nullptr) ++*step;
  if (found != nullptr) *found->step = *admission.group.step;
  ++cache.counters[0];
  count_dropped(admission.group, dropped);
  parallel_range(count, task_count(count, kTaskRows), [&](int64_t begin, int64_t end) {
    TaskStats stats(admission.group);
    touch_hits<Policy>(admission, begin, end, stats);
  });
  uint64_t* hashes = sorted == list.get() ? spare.get() : list.get();  // the one without the misses
  admit_misses<Policy>(admission, sorted, misses, hashes, estimates.get(), workspace);
  if constexpr (Policy::kSketch) {
    uint64_t& samples = cache.counters[1];
    samples += static_cast<uint64_t>(count);
    if (samples >= kHalvingPeriod * static_cast<uint64_t>(cache.num_sets * cache.ways)) {
      halve<Policy>(cache);
      samples = 0;
    }
  }
  return MPE_OK;
}

// Tasks of kernels that do little for each item.
inline int64_t light_tasks(int64_t items) { return task_count(items, kTaskRows * 4); }

}  // namespace

mpe_status cache_admit(const mpe_group* group, const mpe_unique* unique, int64_t,
                       const int64_t* dropped, uint64_t* step, int32_t* slots,
                       const mpe_found* found, void*) {
  const mpe_cache& cache = *group->cache;
  const uint32_t clock = static_cast<uint32_t>(cache.counters[0] + 1);
  return with_policy(cache.policy, [&](auto policy) {
    return admit<decltype(policy)>(
        Admission{*group, cache, *unique, unique_count(*unique), slots, clock}, dropped, step,
        found);
  });
}

mpe_status cache_refresh(const mpe_group* group, const mpe_unique* unique, int64_t,
                         const int32_t* slots, int32_t* fresh, void*) {
  const mpe_cache& cache = *group->cache;
  const int64_t count = unique_count(*unique);
  parallel_each(count, light_tasks(count), [&](int64_t i) {
    fresh[i] = slots[i] >= 0 ? slots[i] : find_slot(cache, unique->rows[i]);
  });
  return MPE_OK;
}

mpe_status cache_release(const mpe_cache* cache, const mpe_unique* unique, int64_t,
                         const int32_t* slots, void*) {
  const int64_t count = unique_count(*unique);
  parallel_each(count, light_tasks(count), [&](int64_t i) {
    if (slots[i] >= 0) cache->tags[slots[i]] -= kTagPin;
  });
  return MPE_OK;
}

mpe_status cache_flush(const mpe_group* group, void*) {
  const mpe_cache& cache = *group->cache;
  const int64_t slots = cache.num_sets * cache.ways;
  const int64_t tasks = task_count(slots, kTaskRows);
  const EncoderWorkspace workspace(tasks, group->dim, false);
  if (!workspace.ok()) return MPE_ERR_MEMORY;
  parallel_range(slots, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    WriteBack write_back(*group, workspace, task);
    for (int64_t slot = begin; slot < end; ++slot) {
      const uint64_t tag = cache.tags[slot];
      if ((tag & kTagDirty) == 0) continue;
      write_back.add(slot, tag & kTagIdMask, find_table(*group, tag & kTagIdMask));
      cache.tags[slot] = tag & ~kTagDirty;
    }
  });
  return MPE_OK;
}

mpe_status cache_locate(const mpe_cache* cache, const uint64_t* keys, int64_t n, int32_t* slots,
                        void*) {
  parallel_each(n, light_tasks(n), [&](int64_t i) {
    const int64_t ahead = i + kPrefetchDistance;
    if (ahead < n && keys[ahead] != MPE_DROPPED) prefetch_set(*cache, keys[ahead]);
    slots[i] = keys[i] == MPE_DROPPED ? -1 : find_slot(*cache, keys[i]);
  });
  return MPE_OK;
}

mpe_status scatter_slots(const mpe_unique* unique, const int32_t* unique_slots, int64_t n,
                         int32_t* slots, void*) {
  memset(slots, 0xFF, static_cast<size_t>(n) * sizeof(int32_t));  // dropped lookups: -1
  const int64_t count = unique_count(*unique);
  parallel_each(count, light_tasks(count), [&](int64_t i) {
    for (int64_t j = unique->starts[i]; j < unique->starts[i + 1]; ++j) {
      slots[unique->positions[j]] = unique_slots[i];
    }
  });
  return MPE_OK;
}

MPE_END
