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

// A table with its cache, and a batch with all that its kernels need.
struct World {
  Vec<uint8_t> rows;
  Vec<float> state = Vec<float>(kRows), cached = Vec<float>(kSets * kWays * kDim);
  Vec<uint64_t> tags = Vec<uint64_t>(kSets * kWays, MPE_EMPTY_TAG);
  Vec<uint32_t> meta = Vec<uint32_t>(kSets * kWays);
  uint64_t counters[2] = {0, 0}, step = 0;
  int64_t stats[MPE_NUM_STATS] = {}, origin = 0, dropped = 0, count = 0;
  mpe_table table;
  mpe_cache cache;
  mpe_group group;

  Vec<int64_t> indices = Vec<int64_t>(kLookups), offsets = Vec<int64_t>(kBags + 1);
  Vec<int64_t> bag_offsets = offsets, starts = Vec<int64_t>(kLookups + 1);
  Vec<uint64_t> keys = Vec<uint64_t>(kLookups), unique_rows = keys;
  Vec<int32_t> bags = Vec<int32_t>(kLookups), positions = bags, slots = bags;
  Vec<float> values = Vec<float>(kBags * kDim, 0.5f);
  mpe_lookups lookups{kLookups,           kBags,   keys.data(), bags.data(),
                      bag_offsets.data(), &origin, &dropped,    nullptr};
  mpe_unique unique{&count, unique_rows.data(), starts.data(), positions.data()};
  mpe_outputs outputs{mpe_matrix{values.data(), kDim}, nullptr};

  World(const mpe_backend& k, int32_t precision, bool with_cache)
      : rows(static_cast<size_t>(kRows * mpe_row_bytes(precision, kDim))),
        table{rows.data(), state.data(),    stats, kRows,           0, precision,
              0,           MPE_pooling_sum, 0,     MPE_format_fp32, 0},
        cache{tags.data(), meta.data(), cached.data(), nullptr,       counters,
              kSets,       0,           kWays,         MPE_policy_lru},
        group{&table, nullptr, with_cache ? &cache : nullptr, &step, 7,
              1,      kDim,    MPE_rounding_stochastic} {
    must(k.init_rows(&group, 0, MPE_init_uniform, -1.0f, 1.0f, nullptr));
    for (int64_t b = 0; b <= kBags; ++b) offsets[static_cast<size_t>(b)] = b * kPool;
  }

  // Draws a batch and finds its unique rows.
  void draw(const mpe_backend& k) {
    for (auto& index : indices) index = random_row();
    const mpe_batch batch{indices.data(), offsets.data(), nullptr, kLookups, kBags, 1, 64, 64};
    mpe_error error = MPE_NO_ERROR;
    must(k.check_offsets(&batch, nullptr, &error));
    must(k.prepare(&group, &batch, 0, nullptr, &lookups, nullptr, &error));
    must(k.dedup(keys.data(), kLookups, kRows, &unique, nullptr));
  }
};

void look_up(const mpe_backend& k, World& w) {
  const mpe_lookup_args part{&w.group, &w.lookups, nullptr, &w.outputs};
  must(k.lookup(&part, 1, nullptr));
}

mpe_optimizer optimizer(int32_t kind) {
  mpe_optimizer made{};
  made.kind = kind, made.decay_mode = MPE_decay_none;
  made.lr = 0.1f, made.eps = 1e-8f;
  return made;
}

void update(const mpe_backend& k, World& w) {
  const mpe_optimizer rowwise = optimizer(MPE_optimizer_rowwise_adagrad);
  mpe_error error = MPE_NO_ERROR;
  must(k.update(&w.group, &rowwise, &w.lookups, &w.unique, nullptr, &w.outputs, &error, nullptr));
}

void admit(const mpe_backend& k, World& w) {
  must(k.cache_admit(&w.group, &w.unique, kLookups, w.slots.data(), nullptr));
}

// Fills the cache with other rows, dirty ones, and draws the batch that replaces some of them.
void fill_cache(const mpe_backend& k, World& w) {
  must(k.advance(&w.step, nullptr));
  admit(k, w);
  const mpe_optimizer sgd = optimizer(MPE_optimizer_sgd);
  mpe_error error = MPE_NO_ERROR;
  must(k.advance(&w.step, nullptr));
  must(
      k.update(&w.group, &sgd, &w.lookups, &w.unique, w.slots.data(), &w.outputs, &error, nullptr));
  must(k.cache_release(&w.cache, &w.unique, kLookups, w.slots.data(), nullptr));
  w.draw(k);
}

}  // namespace

extern "C" __attribute__((noinline)) void measured(void (*kernel)(const mpe_backend&, void*),
                                                   const mpe_backend* k, void* world) {
  kernel(*k, world);
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  const mpe_backend& k = *mpe_cpu_backend_avx2();
  mpe_set_num_threads(1);
  const auto run = [&](int32_t precision, bool cached, auto kernel) {
    World w(k, precision, cached);
    w.draw(k);
    if (cached) fill_cache(k, w);
    must(k.advance(&w.step, nullptr));
    measured(kernel, &k, &w);
    return 0;
  };
  using Any = void*;
  if (std::strcmp(name, "lookup_int8") == 0) {
    return run(MPE_format_int8, false,
               [](const mpe_backend& b, Any w) { look_up(b, *static_cast<World*>(w)); });
  }
  if (std::strcmp(name, "update_int4_rowwise") == 0) {
    return run(MPE_format_int4, false,
               [](const mpe_backend& b, Any w) { update(b, *static_cast<World*>(w)); });
  }
  if (std::strcmp(name, "cache_admit_int4") == 0) {
    return run(MPE_format_int4, true,
               [](const mpe_backend& b, Any w) { admit(b, *static_cast<World*>(w)); });
  }
  std::fprintf(stderr, "unknown kernel: %s\n", name);
  return 2;
}
