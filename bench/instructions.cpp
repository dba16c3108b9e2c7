// Runs one fixed kernel once, inside the function `measured`, whose instructions callgrind counts;
// built and run by instructions.py. Everything is drawn by a fixed generator: no run differs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "mpembed/api.h"

extern "C" {
const mpe_backend* mpe_cpu_backend_avx2(void);
// Only the level that is counted is linked; the dispatcher names the others.
const mpe_backend* mpe_cpu_backend_base(void) { return nullptr; }
const mpe_backend* mpe_cpu_backend_avx512(void) { return nullptr; }
}

namespace {

constexpr int32_t kDim = 64, kWays = 32;
constexpr int64_t kRows = 8192, kBags = 256, kPool = 20, kLookups = kBags * kPool, kSets = 32;

template <class T>
using Vec = std::vector<T>;

void must(mpe_status status) {
  if (status == MPE_OK) return;
  std::fprintf(stderr, "status %d\n", static_cast<int>(status));
  std::exit(1);
}

int64_t random_row() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<int64_t>((state >> 33) % kRows);
}

// A table with rowwise Adagrad and its cache, and a batch with all that its kernels need.
struct Setup {
  Vec<uint8_t> records;  // each a row and its state
  Vec<float> cached = Vec<float>(kSets * kWays * kDim), values = Vec<float>(kSets * kWays);
  Vec<uint64_t> tags = Vec<uint64_t>(kSets * kWays, MPE_EMPTY_TAG);
  Vec<uint32_t> meta = Vec<uint32_t>(kSets * kWays);
  uint64_t counters[2] = {0, 0}, step = 0, updates = 0;
  int64_t stats[MPE_NUM_STATS] = {}, origin = 0, dropped = 0, count = 0;
  float coefficients[MPE_MAX_COEFFICIENTS] = {};
  mpe_table table{};
  mpe_cache cache{};
  mpe_optimizer optimizer{MPE_optimizer_rowwise_adagrad, MPE_decay_none, coefficients, nullptr,
                          nullptr};
  mpe_group group;

  Vec<int64_t> indices = Vec<int64_t>(kLookups), offsets = Vec<int64_t>(kBags + 1);
  Vec<int64_t> bag_offsets = offsets, starts = Vec<int64_t>(kLookups + 1);
  Vec<uint64_t> keys = Vec<uint64_t>(kLookups), unique_rows = keys;
  Vec<int32_t> bags = Vec<int32_t>(kLookups), positions = bags, slots = bags;
  Vec<float> gradient = Vec<float>(kBags * kDim, 0.5f);
  mpe_lookups lookups{kLookups,           kBags,   keys.data(), bags.data(),
                      bag_offsets.data(), &origin, &dropped,    nullptr};
  mpe_unique unique{&count, unique_rows.data(), starts.data(), positions.data()};
  mpe_outputs outputs{mpe_matrix{gradient.data(), kDim}, nullptr, MPE_format_fp32};

  Setup(const mpe_backend& backend, int32_t precision, bool with_cache)
      : group{&table, nullptr, with_cache ? &cache : nullptr, &optimizer, &step, 7,
              1,      kDim,    MPE_rounding_stochastic} {
    const int64_t row_bytes = mpe_row_bytes(precision, kDim);
    table.row_stride = row_bytes + 4;
    records.resize(static_cast<size_t>(kRows * table.row_stride));
    table.rows = records.data();
    table.states[0] = {table.rows + row_bytes, table.row_stride, MPE_format_fp32};
    table.stats = stats;
    table.num_rows = kRows;
    table.precision = precision;
    table.pooling = MPE_pooling_sum;
    cache.tags = tags.data(), cache.meta = meta.data();
    cache.rows = cached.data(), cache.values = values.data();
    cache.counters = counters;
    cache.num_sets = kSets, cache.ways = kWays;
    cache.policy = MPE_policy_lru;
    must(backend.init_rows(&group, 0, MPE_init_uniform, -1.0f, 1.0f, nullptr));
    for (int64_t b = 0; b <= kBags; ++b) offsets[static_cast<size_t>(b)] = b * kPool;
    const mpe_parameters parameters{optimizer.kind, optimizer.decay_mode, {0.1, 0.0, 1e-8}};
    must(backend.begin_update(nullptr, &parameters, 1, &updates, coefficients, nullptr));
  }

  // Draws a batch and finds its unique rows.
  void draw(const mpe_backend& backend) {
    for (auto& index : indices) index = random_row();
    const mpe_batch batch{indices.data(), offsets.data(), nullptr, kLookups, kBags, 1, 64, 64};
    mpe_error error = MPE_NO_ERROR;
    must(backend.check_offsets(&batch, nullptr, &error));
    must(backend.prepare(&group, &batch, 0, &lookups, nullptr, &error));
    must(backend.dedup(keys.data(), kLookups, kRows, &unique, nullptr));
  }
};

void look_up(const mpe_backend& backend, Setup& setup) {
  const mpe_lookup_args part{&setup.group, &setup.lookups, nullptr, &setup.outputs};
  must(backend.lookup(&part, 1, nullptr));
}

// slots: of the unique rows, or NULL without a cache.
void update_rows(const mpe_backend& backend, Setup& setup, const int32_t* slots) {
  const mpe_gradient gradient{&setup.lookups, &setup.outputs};
  mpe_error error = MPE_NO_ERROR;
  must(backend.update(&setup.group, &gradient, 1, &setup.unique, slots, nullptr, nullptr, &error,
                      nullptr));
}

void update(const mpe_backend& backend, Setup& setup) { update_rows(backend, setup, nullptr); }

void admit(const mpe_backend& backend, Setup& setup) {
  must(backend.cache_admit(&setup.group, &setup.unique, kLookups, nullptr, nullptr,
                           setup.slots.data(), nullptr, nullptr));
}

// Fills the cache with other rows, dirty ones, and draws the batch that replaces some of them.
void fill_cache(const mpe_backend& backend, Setup& setup) {
  must(backend.advance(&setup.step, nullptr));
  admit(backend, setup);
  must(backend.advance(&setup.step, nullptr));
  update_rows(backend, setup, setup.slots.data());
  must(backend.cache_release(&setup.cache, &setup.unique, kLookups, setup.slots.data(), nullptr));
  setup.draw(backend);
}

// One of the kernels above, as `measured` takes it.
template <void (*kKernel)(const mpe_backend&, Setup&)>
void call(const mpe_backend& backend, void* setup) {
  kKernel(backend, *static_cast<Setup*>(setup));
}

}  // namespace

extern "C" __attribute__((noinline)) void measured(void (*kernel)(const mpe_backend&, void*),
                                                   const mpe_backend* backend, void* setup) {
  kernel(*backend, setup);
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  const mpe_backend& backend = *mpe_cpu_backend_avx2();
  mpe_set_num_threads(1);
  const auto run = [&](int32_t precision, bool cached, void (*kernel)(const mpe_backend&, void*)) {
    Setup setup(backend, precision, cached);
    setup.draw(backend);
    if (cached) fill_cache(backend, setup);
    must(backend.advance(&setup.step, nullptr));
    measured(kernel, &backend, &setup);
    return 0;
  };
  if (std::strcmp(name, "lookup_int8") == 0) {
    return run(MPE_format_int8, false, call<look_up>);
  }
  if (std::strcmp(name, "update_int4_rowwise") == 0) {
    return run(MPE_format_int4, false, call<update>);
  }
  if (std::strcmp(name, "cache_admit_int4") == 0) {
    return run(MPE_format_int4, true, call<admit>);
  }
  std::fprintf(stderr, "unknown kernel: %s\n", name);
  return 2;
}
