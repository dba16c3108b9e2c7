// Admission that finds no memory for its workspace leaves the cache as it was.
#include "collection.h"

// The emulation's: the n-th allocation from now on fails.
extern "C" void simt_fail_alloc(int64_t n);

namespace {

using namespace replicas;

// Everything that admission may change.
std::vector<std::vector<uint8_t>> state(Collection& c) {
  const auto bytes = [&](const void* p, int64_t n) {
    return c.replica.read(static_cast<const uint8_t*>(p), n);
  };
  std::vector<std::vector<uint8_t>> all{
      bytes(c.cache.tags, c.slots() * 8), bytes(c.cache.meta, c.slots() * 4),
      bytes(c.cache.rows, c.slots() * c.slot_floats() * 4), bytes(c.cache.counters, 16),
      bytes(c.cache.sketch, MPE_SKETCH_ROWS * c.cache.sketch_width)};
  if (c.slot_values() > 0) all.push_back(bytes(c.cache.values, c.slots() * c.slot_values() * 4));
  for (const mpe_table& t : c.tables) {
    all.push_back(bytes(t.stats, MPE_NUM_STATS * 8));
    all.push_back(bytes(t.noise, MPE_NUM_NOISE_SUMS * 8));
  }
  return all;
}

}  // namespace

// Returns an empty text if every failing allocation was harmless; `failures` counts them.
extern "C" __attribute__((visibility("default"))) const char* no_memory(const mpe_backend* backend,
                                                                        const Options* o,
                                                                        int32_t* failures) {
  g_report.clear();
  *failures = 0;
  Collection c(backend, *o, o->layout);
  std::vector<uint64_t> rows;
  for (uint64_t i = 0; i < static_cast<uint64_t>(c.total_rows()); i += 2) rows.push_back(i);
  const int64_t n = static_cast<int64_t>(rows.size());
  std::vector<int64_t> starts(static_cast<size_t>(n) + 1);
  for (int64_t i = 0; i <= n; ++i) starts[static_cast<size_t>(i)] = i;
  const mpe_unique u{c.replica.make<int64_t>(1, &n), c.replica.make<uint64_t>(n, rows.data()),
                     c.replica.make<int64_t>(n + 1, starts.data()), c.replica.make<int32_t>(n)};
  int32_t* slots = c.replica.make<int32_t>(n);
  const auto before = state(c);
  for (int64_t k = 1;; ++k) {
    simt_fail_alloc(k);
    const mpe_status status =
        backend->cache_admit(&c.group, &u, n, nullptr, c.step, slots, nullptr, nullptr);
    simt_fail_alloc(0);
    if (status == MPE_OK) break;
    ++*failures;
    if (status != MPE_ERR_MEMORY) g_report += "another error than want of memory\n";
    if (state(c) != before) g_report += "allocation " + std::to_string(k) + " changed state\n";
    if (k > 100) return "admission never succeeds";
  }
  if (state(c) == before) g_report += "admission did nothing\n";
  return g_report.c_str();
}
