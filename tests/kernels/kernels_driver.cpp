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

// The arrays of one group, and the views on them. A row and its states lie side by side.
struct Group {
  Vec<uint8_t> records[kTables];
  Vec<int64_t> stats = Vec<int64_t>(kTables * MPE_NUM_STATS);
  Vec<int64_t> noise = Vec<int64_t>(kTables * MPE_NUM_NOISE_SUMS);
  Vec<uint64_t> tags = Vec<uint64_t>(kSets * kWays, MPE_EMPTY_TAG);
  Vec<uint32_t> meta = Vec<uint32_t>(kSets * kWays);
  Vec<float> cached, values, coefficients = Vec<float>(kTables * MPE_MAX_COEFFICIENTS);
  Vec<uint8_t> sketch = Vec<uint8_t>(4 * 8192);
  uint64_t counters[2] = {0, 0};
  uint64_t step = 0, updates = 0;
  mpe_parameters parameters[kTables];
  mpe_table tables[kTables] = {};
  mpe_cache cache{};
  mpe_optimizer optimizer;
  mpe_group group;

  Group(int32_t policy, int32_t kind) {
    cached.resize(static_cast<size_t>(kSets * kWays * mpe_slot_floats(kind, kDim)));
    values.resize(static_cast<size_t>(kSets * kWays * mpe_slot_values(kind)));
    for (int32_t t = 0; t < kTables; ++t) {
      make_table(t, kind);
      parameters[t] = {kind, MPE_decay_none, {0.1}};
      for (int i = 2; i < MPE_MAX_PARAMETERS; ++i) parameters[t].values[i] = 0.01;
    }
    cache.tags = tags.data(), cache.meta = meta.data();
    cache.rows = cached.data(), cache.values = values.data();
    cache.sketch = sketch.data(), cache.counters = counters;
    cache.num_sets = kSets, cache.ways = kWays;
    cache.sketch_width = 8192, cache.policy = policy;
    optimizer = {kind, MPE_decay_none, coefficients.data(), nullptr, nullptr};
    group = {tables, nullptr, &cache, &optimizer, &step, 7, kTables, kDim, MPE_rounding_stochastic};
  }

 private:
  void make_table(int32_t t, int32_t kind) {
    mpe_table& table = tables[t];
    int64_t bytes = mpe_row_bytes(kPrecisions[t], kDim);
    int64_t offsets[MPE_MAX_STATES] = {};
    for (int32_t i = 0; i < mpe_num_states(kind); ++i) {
      offsets[i] = bytes;
      bytes += 4 * (mpe_state_shape(kind, i) == MPE_STATE_ELEMENT ? kDim : 1);
    }
    records[t].resize(static_cast<size_t>(kRows * bytes));
    table.rows = records[t].data();
    table.row_stride = bytes;
    for (int32_t i = 0; i < mpe_num_states(kind); ++i) {
      table.states[i] = {table.rows + offsets[i], bytes, MPE_format_fp32};
    }
    table.stats = stats.data() + t * MPE_NUM_STATS;
    table.noise = noise.data() + t * MPE_NUM_NOISE_SUMS;
    table.num_rows = kRows;
    table.base = t * kRows;
    table.precision = kPrecisions[t];
    table.table_id = table.feature = t;
    table.pooling = t == 1 ? MPE_pooling_mean : MPE_pooling_sum;
    table.column = t * kDim;
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

uint64_t train(const mpe_backend& backend, int32_t policy, int32_t optimizer) {
  Group arrays(policy, optimizer);
  const mpe_group* group = &arrays.group;
  for (int32_t t = 0; t < kTables; ++t) {
    must(backend.init_rows(group, t, MPE_init_uniform, -1.0f, 1.0f, nullptr));
  }
  Vec<float> out(kBatch * kTables * kDim), weight_grad(kLookups);
  const mpe_outputs outputs{mpe_matrix{out.data(), kTables * kDim}, nullptr, MPE_format_fp32};
  uint64_t sum = 0xCBF29CE484222325u;
  for (int step = 0; step < 3; ++step) {
    Batch memory;
    const mpe_batch batch{memory.indices.data(),
                          memory.offsets.data(),
                          memory.sample_weights.data(),
                          kLookups,
                          kBatch,
                          kTables,
                          64,
                          64};
    mpe_error error = MPE_NO_ERROR;
    must(backend.check_offsets(&batch, nullptr, &error));
    must(backend.prepare(group, &batch, 0, &memory.lookups, nullptr, &error));
    must(backend.dedup(memory.keys.data(), kLookups, kAll, &memory.unique, nullptr));
    must(backend.count(group, &memory.lookups, &memory.unique, 1, 1, nullptr));
    must(backend.advance(&arrays.step, nullptr));
    uint64_t found_step = 0;
    const mpe_found found{memory.fresh.data(), &found_step};
    must(backend.cache_admit(group, &memory.unique, kLookups, memory.dropped, nullptr,
                             memory.unique_slots.data(), &found, nullptr));
    must(backend.cache_refresh(group, &memory.unique, kLookups, memory.unique_slots.data(),
                               memory.fresh.data(), nullptr));
    must(backend.scatter_slots(&memory.unique, memory.fresh.data(), kLookups, memory.slots.data(),
                               nullptr));
    const mpe_lookup_args part{group, &memory.lookups, memory.slots.data(), &outputs};
    must(backend.lookup(&part, 1, nullptr));
    must(backend.weight_grad(group, &memory.lookups, memory.slots.data(), &outputs,
                             weight_grad.data(), nullptr));
    must(backend.begin_update(&arrays.step, arrays.parameters, kTables, &arrays.updates,
                              arrays.coefficients.data(), nullptr));
    const mpe_gradient gradient{&memory.lookups, &outputs};
    must(backend.update(group, &gradient, 1, &memory.unique, memory.fresh.data(), nullptr, nullptr,
                        &error, nullptr));
    must(backend.cache_release(&arrays.cache, &memory.unique, kLookups, memory.unique_slots.data(),
                               nullptr));
    sum = checksum(weight_grad, checksum(out, sum));
  }
  Vec<uint64_t> every(kAll);
  Vec<float> values(kAll * kDim);
  for (int64_t i = 0; i < kAll; ++i) every[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  must(backend.read_rows(group, every.data(), kAll, values.data(), nullptr));
  must(backend.advance(&arrays.step, nullptr));
  must(backend.write_rows(group, every.data(), kAll, values.data(), nullptr));
  must(backend.advance(&arrays.step, nullptr));
  must(backend.cache_flush(group, nullptr));
  for (const auto& records : arrays.records) sum = checksum(records, sum);
  for (const auto& sums : {arrays.stats, arrays.noise}) sum = checksum(sums, sum);
  return checksum(arrays.tags, checksum(arrays.meta, sum));
}

}  // namespace

int main(int argc, char** argv) {
  mpe_set_num_threads(argc > 1 ? std::atoi(argv[1]) : 4);
  for (int32_t policy = 0; policy < MPE_NUM_POLICIES; ++policy) {
    for (int32_t optimizer = 0; optimizer < MPE_NUM_OPTIMIZERS; ++optimizer) {
      const uint64_t sum = train(*mpe_cpu_backend_base(), policy, optimizer);
      std::printf("%016llx\n", static_cast<unsigned long long>(sum));
    }
  }
  return 0;
}
