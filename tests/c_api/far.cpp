// Rows that lie more than 4 GiB into a table: written, looked up, trained and read on two backends.
#include <sys/mman.h>

#include "replica.h"

namespace {

using namespace replicas;

constexpr int32_t kDim = 64;
constexpr int64_t kRows = 80'000'000;  // of INT8: 5.8 GB, of which few pages are touched
constexpr int64_t kStateBytes = kRows * 4;

// One table of int8 rows with rowwise Adagrad's state.
struct Far {
  Replica replica;
  mpe_table table{};
  mpe_optimizer optimizer{};
  mpe_group group{};
  float* coefficients;
  uint64_t* step;
  int64_t bytes = kRows * mpe_row_bytes(MPE_format_int8, kDim);
  void *rows = nullptr, *state = nullptr;
  bool mapped;

  // mapped: host memory that is committed where it is touched; otherwise the backend's own.
  Far(const mpe_backend* backend, bool map) : replica(backend), mapped(map) {
    rows = take(bytes);
    state = take(kStateBytes);
    table.rows = static_cast<uint8_t*>(rows);
    table.row_stride = mpe_row_bytes(MPE_format_int8, kDim);
    table.states[0] = {static_cast<uint8_t*>(state), 4, MPE_format_fp32};
    table.num_rows = kRows;
    table.precision = MPE_format_int8;
    table.pooling = MPE_pooling_sum;
    step = replica.make<uint64_t>(1);
    coefficients = replica.make<float>(MPE_MAX_COEFFICIENTS);
    optimizer = {MPE_optimizer_rowwise_adagrad, MPE_decay_none, coefficients, nullptr, nullptr};
    group.tables = &table;
    group.device_tables = replica.make<mpe_table>(1, &table);
    group.optimizer = &optimizer;
    group.step = step;
    group.seed = 7;
    group.num_tables = 1;
    group.dim = kDim;
    group.rounding = MPE_rounding_stochastic;
  }
  ~Far() {
    give(rows, bytes);
    give(state, kStateBytes);
  }

 private:
  void* take(int64_t size) {
    void* p = nullptr;
    if (!mapped) {
      replica.check(replica.b->allocate(size, MPE_PLACEMENT_DEVICE, &p), "allocate");
      replica.check(replica.b->fill(p, 0, size, nullptr), "fill");
      return p;
    }
    p = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) g_report += "no address space\n";
    return p;
  }
  void give(void* p, int64_t size) {
    if (mapped) {
      munmap(p, static_cast<size_t>(size));
    } else {
      replica.b->release(p, MPE_PLACEMENT_DEVICE);
    }
  }
};

// Writes the rows, trains a bag of them, and returns what the bag gave and what the rows are then.
std::vector<float> work(Far& f, const std::vector<int64_t>& ids) {
  Replica& s = f.replica;
  const int64_t n = static_cast<int64_t>(ids.size());
  const std::vector<uint64_t> keys(ids.begin(), ids.end());
  std::vector<float> values(static_cast<size_t>(n * kDim));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 101) * 0.01f;
  const uint64_t* k = s.make<uint64_t>(n, keys.data());
  s.check(s.b->write_rows(&f.group, k, n, s.make<float>(n * kDim, values.data()), nullptr),
          "write_rows");

  mpe_batch b{};
  const std::vector<int64_t> offsets{0, n};
  b.indices = s.make<int64_t>(n, ids.data());
  b.offsets = s.make<int64_t>(2, offsets.data());
  b.num_indices = n;
  b.batch_size = 1;
  b.num_features = 1;
  b.index_bits = b.offset_bits = 64;
  mpe_lookups l{};
  l.n = n;
  l.batch_size = 1;
  l.keys = s.make<uint64_t>(n);
  l.bags = s.make<int32_t>(n);
  l.bag_offsets = s.make<int64_t>(2);
  l.origins = s.make<int64_t>(1);
  l.dropped = s.make<int64_t>(1);
  mpe_unique u{s.make<int64_t>(1), s.make<uint64_t>(n), s.make<int64_t>(n + 1), s.make<int32_t>(n)};
  mpe_error* errors = s.make<mpe_error>(2, std::vector<mpe_error>(2, kNoError).data());
  const mpe_outputs out{{s.make<float>(kDim), kDim}, nullptr, MPE_format_fp32};
  const mpe_parameters parameters{MPE_optimizer_rowwise_adagrad, MPE_decay_none, {0.1, 0.0, 1e-8}};
  const mpe_parameters* p = s.make<mpe_parameters>(1, &parameters);
  s.check(s.b->advance(f.step, nullptr), "advance");
  s.check(s.b->prepare(&f.group, &b, 0, &l, nullptr, errors + 1), "prepare");
  s.check(s.b->dedup(l.keys, n, static_cast<uint64_t>(kRows), &u, nullptr), "dedup");
  const mpe_lookup_args part{&f.group, &l, nullptr, &out};
  s.check(s.b->lookup(&part, 1, nullptr), "lookup");
  s.check(s.b->begin_update(nullptr, p, 1, s.make<uint64_t>(1), f.coefficients, nullptr),
          "begin_update");
  const mpe_gradient gradient{&l, &out};
  s.check(s.b->update(&f.group, &gradient, 1, &u, nullptr, nullptr, nullptr, errors, nullptr),
          "update");
  float* after = s.make<float>(n * kDim);
  s.check(s.b->read_rows(&f.group, k, n, after, nullptr), "read_rows");
  std::vector<float> all = s.read(static_cast<float*>(out.shared.data), kDim);
  const std::vector<float> rows = s.read(after, n * kDim);
  all.insert(all.end(), rows.begin(), rows.end());
  return all;
}

}  // namespace

// Returns an empty text where both backends agree; mapped: whether the second one's kernels reach
// any host memory (an emulation's do), so that the table need not be committed.
extern "C" __attribute__((visibility("default"))) const char* far_rows(const mpe_backend* a,
                                                                       const mpe_backend* b,
                                                                       int mapped) {
  g_report.clear();
  const std::vector<int64_t> ids{0, 59'652'322, 59'652'324, 59'652'325, 70'000'001, kRows - 1};
  Far first(a, true), second(b, mapped != 0);
  const std::vector<float> x = work(first, ids), y = work(second, ids);
  if (x.size() != y.size() || memcmp(x.data(), y.data(), x.size() * sizeof(float)) != 0) {
    g_report += "the backends differ beyond 4 GiB\n";
  }
  bool changed = false;
  for (size_t i = x.size() - kDim; i < x.size(); ++i) changed = changed || x[i] != 0.0f;
  if (!changed) g_report += "the last row was never written\n";
  return g_report.c_str();
}
