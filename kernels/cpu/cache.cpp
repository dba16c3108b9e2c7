// The set-associative cache: admission with victims and write-back, release, flush, lookup of tags.
#include "cpu/admission.h"
#include "cpu/kernels.h"
#include "cpu/radix_sort.h"

MPE_BEGIN
namespace {

constexpr int64_t kGrain = 1024;
constexpr int64_t kAhead = 8;

inline void prefetch_set(const mpe_cache& c, uint64_t key) {
  const int64_t first = set_of(key, c.num_sets) * c.ways;
  prefetch_bytes(c.tags + first, c.ways * 8, false);
}

inline void prefetch_slot(const mpe_cache& c, int64_t slot) {
  if (slot < 0) return;
  __builtin_prefetch(c.tags + slot, 1, 3);
  __builtin_prefetch(c.meta + slot, 1, 3);
}

// Finds the slots of all rows, changing nothing else. Returns the number of misses.
int64_t find_slots(const Admission& a) {
  const int64_t tasks = task_count(a.count, kGrain);
  int64_t misses = 0;
  mpe::parallel(tasks, [&](int64_t t) {
    int64_t n = 0;
    const int64_t end = task_begin(a.count, tasks, t + 1);
    for (int64_t i = task_begin(a.count, tasks, t); i < end; ++i) {
      if (i + kAhead < a.count) prefetch_set(a.c, a.u.rows[i + kAhead]);
      const int64_t slot = probe(a.c.tags, a.c.num_sets, a.c.ways, a.u.rows[i]);
      a.slots[i] = static_cast<int32_t>(slot);
      n += slot < 0 ? 1 : 0;
    }
    __atomic_fetch_add(&misses, n, __ATOMIC_RELAXED);
  });
  return misses;
}

// Step 2: hits are pinned and touched.
template <class P>
void touch_hits(const Admission& a, int64_t begin, int64_t end, TaskStats& stats) {
  int32_t t = 0;
  int64_t* counts = stats.of(t);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t owner = find_table(a.g, a.u.rows[i], t);
    if (owner != t) counts = stats.of(t = owner);
    prefetch_slot(a.c, i + kAhead < end ? a.slots[i + kAhead] : -1);
    const int64_t slot = a.slots[i];
    ++counts[MPE_stat_unique];
    counts[MPE_stat_accesses] += a.u.starts[i + 1] - a.u.starts[i];
    ++counts[slot < 0 ? MPE_stat_misses : MPE_stat_hits];
    if (slot < 0) continue;
    a.c.tags[slot] += kTagPin;
    a.c.meta[slot] = P::on_hit(a.c.meta[slot], a.clock);
  }
}

// Misses as (set << 32 | unique row), ascending: within a set in the order of the row ids.
uint64_t* sorted_misses(const Admission& a, int64_t misses, uint64_t* list, uint64_t* tmp) {
  int64_t n = 0;
  for (int64_t i = 0; i < a.count; ++i) {
    if (a.slots[i] >= 0) continue;
    list[n++] =
        (static_cast<uint64_t>(set_of(a.u.rows[i], a.c.num_sets)) << 32) | static_cast<uint64_t>(i);
  }
  return radix_sort(list, tmp, misses, 32, bits_for(static_cast<uint64_t>(a.c.num_sets)));
}

// Adds the misses to the sketch. A task has cells of its own, in one row, and looks at every miss:
// cheaper than cells that several may change. So there are no more tasks than threads ask for.
void count_misses(const mpe_cache& c, const uint64_t* hashes, int64_t misses) {
  const int64_t parts = misses < kGrain ? 1 : ceil_div(mpe::max_threads(), kSketchRows);
  const auto count = [&](int64_t t) {
    const SketchCells cells(c, static_cast<uint32_t>(t / parts), t % parts, parts);
    for (int64_t i = 0; i < misses; ++i) cells.add(hashes[i]);
  };
  if (misses >= kGrain) return mpe::parallel(kSketchRows * parts, count);
  for (int64_t row = 0; row < kSketchRows; ++row) count(row);  // not worth waking anybody
}

// Steps 3 and 4. sorted: the misses; hashes and estimates: room for as many where the policy has a
// sketch.
template <class P>
void admit_misses(const Admission& a, const uint64_t* sorted, int64_t misses, uint64_t* hashes,
                  uint32_t* estimates, const EncoderSpace& space) {
  const int64_t tasks = task_count(misses, kGrain);
  const auto each = [&](auto visit) {
    mpe::parallel(tasks, [&](int64_t t) {
      const int64_t end = task_begin(misses, tasks, t + 1);
      for (int64_t i = task_begin(misses, tasks, t); i < end; ++i) visit(i);
    });
  };
  if (P::kSketch) {
    each([&](int64_t i) { hashes[i] = splitmix64(a.u.rows[miss_row(sorted[i])]); });
    count_misses(a.c, hashes, misses);
    each([&](int64_t i) { estimates[i] = sketch_estimate(a.c, hashes[i]); });
  }
  // A set belongs to one task: borders move up to where a set begins.
  const auto border = [&](int64_t t) {
    int64_t i = task_begin(misses, tasks, t);
    while (i > 0 && i < misses && miss_set(sorted[i]) == miss_set(sorted[i - 1])) ++i;
    return i;
  };
  mpe::parallel(tasks, [&](int64_t t) {
    Admitter<P> admitter(a, space, t);
    const int64_t end = border(t + 1);
    for (int64_t i = border(t); i < end; ++i) {
      // What was seen before is likely to be admitted; of the others most are not.
      if (i + kAhead < misses && (!P::kSketch || estimates[i + kAhead] > 1)) {
        admitter.prefetch(miss_row(sorted[i + kAhead]));
      }
      admitter.admit(sorted[i], P::kSketch ? estimates[i] : 0);
    }
  });
}

// Step 5: recent use counts more than old use.
void halve(const mpe_cache& c) {
  const int64_t slots = c.num_sets * c.ways;
  for (int64_t i = 0; i < slots; ++i) c.meta[i] >>= 1;
  for (int64_t i = 0; i < c.sketch_width * kSketchRows; ++i) c.sketch[i] >>= 1;
}

template <class P>
mpe_status admit(const Admission& a) {
  const int64_t misses = find_slots(a);
  const int64_t tasks = task_count(a.count, kGrain);
  const EncoderSpace space(task_count(misses, kGrain), a.g.dim, false);
  Buffer<uint64_t> list(misses), tmp(misses);
  Buffer<uint32_t> estimates(P::kSketch ? misses : 0);
  if (!space.ok() || !list.ok() || !tmp.ok() || !estimates.ok()) return MPE_ERR_MEMORY;
  const uint64_t* sorted = sorted_misses(a, misses, list.get(), tmp.get());
  if (sorted == nullptr) return MPE_ERR_MEMORY;

  ++a.c.counters[0];
  mpe::parallel(tasks, [&](int64_t t) {
    TaskStats stats(a.g);
    touch_hits<P>(a, task_begin(a.count, tasks, t), task_begin(a.count, tasks, t + 1), stats);
  });
  uint64_t* unused = sorted == list.get() ? tmp.get() : list.get();
  admit_misses<P>(a, sorted, misses, unused, estimates.get(), space);
  if (P::kSketch) {
    uint64_t& samples = a.c.counters[1];
    samples += static_cast<uint64_t>(a.count);
    if (samples >= kHalvingPeriod * static_cast<uint64_t>(a.c.num_sets * a.c.ways)) {
      halve(a.c);
      samples = 0;
    }
  }
  return MPE_OK;
}

template <class Visit>
void over(int64_t n, Visit visit) {
  const int64_t tasks = task_count(n, kGrain * 4);
  mpe::parallel(tasks, [&](int64_t t) {
    const int64_t end = task_begin(n, tasks, t + 1);
    for (int64_t i = task_begin(n, tasks, t); i < end; ++i) visit(i);
  });
}

}  // namespace

mpe_status cache_admit(const mpe_group* g, const mpe_unique* u, int64_t, int32_t* slots, void*) {
  const mpe_cache& c = *g->cache;
  const uint32_t clock = static_cast<uint32_t>(c.counters[0] + 1);
  return with_policy(c.policy, [&](auto policy) {
    return admit<decltype(policy)>(
        Admission{*g, c, *u, unique_count(*u), slots, clock});
  });
}

mpe_status cache_refresh(const mpe_group* g, const mpe_unique* u, int64_t, const int32_t* slots,
                         int32_t* fresh, void*) {
  const mpe_cache& c = *g->cache;
  over(unique_count(*u), [&](int64_t i) {
    fresh[i] = slots[i] >= 0 ? slots[i]
                             : static_cast<int32_t>(probe(c.tags, c.num_sets, c.ways, u->rows[i]));
  });
  return MPE_OK;
}

mpe_status cache_release(const mpe_cache* c, const mpe_unique* u, int64_t, const int32_t* slots,
                         void*) {
  over(unique_count(*u), [&](int64_t i) {
    if (slots[i] >= 0) c->tags[slots[i]] -= kTagPin;
  });
  return MPE_OK;
}

mpe_status cache_flush(const mpe_group* g, void*) {
  const mpe_cache& c = *g->cache;
  const int64_t slots = c.num_sets * c.ways;
  const int64_t tasks = task_count(slots, kGrain);
  const EncoderSpace space(tasks, g->dim, false);
  if (!space.ok()) return MPE_ERR_MEMORY;
  mpe::parallel(tasks, [&](int64_t t) {
    WriteBack write_back(*g, space, t);
    const int64_t end = task_begin(slots, tasks, t + 1);
    for (int64_t slot = task_begin(slots, tasks, t); slot < end; ++slot) {
      const uint64_t tag = c.tags[slot];
      if ((tag & kTagDirty) == 0) continue;
      write_back.add(slot, tag & kTagIdMask, find_table(*g, tag & kTagIdMask));
      c.tags[slot] = tag & ~kTagDirty;
    }
  });
  return MPE_OK;
}

mpe_status cache_locate(const mpe_cache* c, const uint64_t* keys, int64_t n, int32_t* slots,
                        void*) {
  over(n, [&](int64_t i) {
    if (i + kAhead < n && keys[i + kAhead] != MPE_DROPPED) prefetch_set(*c, keys[i + kAhead]);
    slots[i] = keys[i] == MPE_DROPPED
                   ? -1
                   : static_cast<int32_t>(probe(c->tags, c->num_sets, c->ways, keys[i]));
  });
  return MPE_OK;
}

mpe_status scatter_slots(const mpe_unique* u, const int32_t* unique_slots, int64_t n,
                         int32_t* slots, void*) {
  memset(slots, 0xFF, static_cast<size_t>(n) * sizeof(int32_t));  // dropped lookups: -1
  over(unique_count(*u), [&](int64_t i) {
    for (int64_t j = u->starts[i]; j < u->starts[i + 1]; ++j) {
      slots[u->positions[j]] = unique_slots[i];
    }
  });
  return MPE_OK;
}

MPE_END
