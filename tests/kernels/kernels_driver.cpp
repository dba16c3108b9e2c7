// Trains one group through the C API with four threads and batches of many tasks, and prints a
// checksum of its bytes; run by test_parallel.py under ThreadSanitizer and without.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "mpembed/api.h"

extern "C" {
const mpe_backend* mpe_cpu_backend_base(void);
// Only the base level is linked; the dispatcher names the others.
const mpe_backend* mpe_cpu_backend_avx2(void) { return nullptr; }
const mpe_backend* mpe_cpu_backend_avx512(void) { return nullptr; }
}

namespace {

constexpr int32_t kDim = 8, kTables = 3, kWays = 8;
constexpr int64_t kRows = 9000, kBatch = 512, kBag = 16, kSets = 700;
constexpr int64_t kBags = kTables * kBatch, kLookups = kBags * kBag, kAll = kTables * kRows;
constexpr int32_t kPrecisions[kTables] = {MPE_format_int4, MPE_format_fp16, MPE_format_fp32};

template <class T>
using Vec = std::vector<T>;

void must(mpe_status status) {
  if (status == MPE_OK) return;
  std::fprintf(stderr, "status %d\n", static_cast<int>(status));
  std::exit(1);
}

uint64_t random_bits() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

uint64_t checksum(const void* p, size_t bytes, uint64_t sum) {
  for (size_t i = 0; i < bytes; ++i) {
    sum = (sum ^ static_cast<const uint8_t*>(p)[i]) * 0x100000001B3u;
  }
  return sum;
}

template <class T>
uint64_t checksum(const Vec<T>& v, uint64_t sum) {
  return checksum(v.data(), v.size() * sizeof(T), sum);
}

// The arrays of one group, and the views on them.
struct Group {
  Vec<uint8_t> rows[kTables];
  Vec<float> state[kTables];
  Vec<int64_t> stats = Vec<int64_t>(kTables * MPE_NUM_STATS);
  Vec<uint64_t> tags = Vec<uint64_t>(kSets * kWays, 0xFFFFFFFFFFFFu);
  Vec<uint32_t> meta = Vec<uint32_t>(kSets * kWays);
  Vec<float> cached = Vec<float>(kSets * kWays * kDim);
  Vec<uint8_t> sketch = Vec<uint8_t>(4 * 8192);
  uint64_t counters[2] = {0, 0};
  uint64_t step = 0;
  mpe_table tables[kTables];
  mpe_cache cache;
  mpe_group group;

  explicit Group(int32_t policy) {
    for (int32_t t = 0; t < kTables; ++t) {
      rows[t].resize(static_cast<size_t>(kRows * mpe_row_bytes(kPrecisions[t], kDim)));
      state[t].resize(kRows);
      tables[t] = mpe_table{rows[t].data(),
                            state[t].data(),
                            stats.data() + t * MPE_NUM_STATS,
                            kRows,
                            t * kRows,
                            kPrecisions[t],
                            t,
                            t == 1 ? MPE_pooling_mean : MPE_pooling_sum,
                            t,
                            MPE_format_fp32,
                            t * kDim};
    }
    cache = mpe_cache{tags.data(), meta.data(), cached.data(), sketch.data(), counters,
                      kSets,       8192,        kWays,         policy};
    group = mpe_group{tables, nullptr, &cache, &step, 7, kTables, kDim, MPE_rounding_stochastic};
  }
};

// What a batch needs between its kernels.
struct Batch {
  Vec<int64_t> indices = Vec<int64_t>(kLookups), offsets = Vec<int64_t>(kBags + 1);
  Vec<float> sample_weights = Vec<float>(kLookups), weights = Vec<float>(kLookups);
  Vec<uint64_t> keys = Vec<uint64_t>(kLookups), unique_rows = Vec<uint64_t>(kLookups);
  Vec<int32_t> bags = Vec<int32_t>(kLookups), positions = Vec<int32_t>(kLookups);
  Vec<int32_t> unique_slots = Vec<int32_t>(kLookups), fresh = unique_slots, slots = unique_slots;
  Vec<int64_t> bag_offsets = Vec<int64_t>(kBags + 1), starts = Vec<int64_t>(kLookups + 1);
  int64_t origins[kTables], dropped[kTables], count = 0;
  mpe_lookups lookups{kLookups,           kBatch,  keys.data(), bags.data(),
                      bag_offsets.data(), origins, dropped,     weights.data()};
  mpe_unique unique{&count, unique_rows.data(), starts.data(), positions.data()};

  Batch() {
    for (int64_t i = 0; i < kLookups; ++i) {
      const size_t at = static_cast<size_t>(i);
      // An eighth goes to few rows, so that some have more than one block of occurrences.
      const uint64_t range = random_bits() % 8 == 0 ? 20 : static_cast<uint64_t>(kRows);
      indices[at] = static_cast<int64_t>(random_bits() % range);
      sample_weights[at] = static_cast<float>(random_bits() % 100) * 0.01f;
      offsets[static_cast<size_t>(i / kBag) + 1] = i / kBag * kBag + kBag;
    }
  }
};

uint64_t train(const mpe_backend& k, int32_t policy) {
  Group g(policy);
  const mpe_group* group = &g.group;
  for (int32_t t = 0; t < kTables; ++t) {
    must(k.init_rows(group, t, MPE_init_uniform, -1.0f, 1.0f, nullptr));
  }
  Vec<float> out(kBatch * kTables * kDim), weight_grad(kLookups);
  const mpe_outputs outputs{mpe_matrix{out.data(), kTables * kDim}, nullptr};
  const mpe_optimizer optimizer{
      MPE_optimizer_rowwise_adagrad, MPE_decay_none, 0.1f, 1e-8f, 0.0f, nullptr};
  uint64_t sum = 0xCBF29CE484222325u;
  for (int step = 0; step < 3; ++step) {
    Batch b;
    const mpe_batch batch{b.indices.data(),
                          b.offsets.data(),
                          b.sample_weights.data(),
                          kLookups,
                          kBatch,
                          kTables,
                          64,
                          64};
    mpe_error error = MPE_NO_ERROR;
    must(k.check_offsets(&batch, nullptr, &error));
    must(k.prepare(group, &batch, 0, nullptr, &b.lookups, nullptr, &error));
    must(k.dedup(b.keys.data(), kLookups, kAll, &b.unique, nullptr));
    must(k.count(group, &b.lookups, &b.unique, 1, 1, nullptr));
    must(k.advance(&g.step, nullptr));
    must(k.cache_admit(group, &b.unique, kLookups, b.unique_slots.data(), nullptr));
    must(k.cache_refresh(group, &b.unique, kLookups, b.unique_slots.data(), b.fresh.data(),
                         nullptr));
    must(k.scatter_slots(&b.unique, b.fresh.data(), kLookups, b.slots.data(), nullptr));
    const mpe_part part{group, &b.lookups, b.slots.data(), &outputs};
    must(k.lookup(&part, 1, nullptr));
    must(k.weight_grad(group, &b.lookups, b.slots.data(), &outputs, weight_grad.data(), nullptr));
    must(k.advance(&g.step, nullptr));
    must(k.update(group, &optimizer, &b.lookups, &b.unique, b.fresh.data(), &outputs, &error,
                  nullptr));
    must(k.cache_release(&g.cache, &b.unique, kLookups, b.unique_slots.data(), nullptr));
    sum = checksum(weight_grad, checksum(out, sum));
  }
  Vec<uint64_t> every(kAll);
  Vec<float> values(kAll * kDim);
  for (int64_t i = 0; i < kAll; ++i) every[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  must(k.read_rows(group, every.data(), kAll, values.data(), nullptr));
  must(k.advance(&g.step, nullptr));
  must(k.write_rows(group, every.data(), kAll, values.data(), nullptr));
  must(k.advance(&g.step, nullptr));
  must(k.cache_flush(group, nullptr));
  for (const auto& rows : g.rows) sum = checksum(rows, sum);
  return checksum(g.tags, checksum(g.meta, checksum(g.stats, sum)));
}

}  // namespace

int main(int argc, char** argv) {
  mpe_set_num_threads(argc > 1 ? std::atoi(argv[1]) : 4);
  for (int32_t policy = 0; policy < MPE_NUM_POLICIES; ++policy) {
    std::printf("%016llx\n",
                static_cast<unsigned long long>(train(*mpe_cpu_backend_base(), policy)));
  }
  return 0;
}
