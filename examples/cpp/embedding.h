// One INT4 table with an FP32 cache, trained through mpembed/api.h by rowwise Adagrad: the same
// code on every backend. All arrays are ours; kernels only see pointers to them.
#pragma once

#include <mpembed/api.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Sizes {
  int64_t rows, batch_size, num_indices;
  int32_t dim, num_sets, ways;
};

// A backend and the stream that all its work goes to.
class Device {
 public:
  Device(const mpe_backend* backend, void* stream) : b(*backend), stream(stream) {
    if (b.api_version != MPE_API_VERSION) throw std::runtime_error("library and header differ");
  }

  void check(mpe_status status, const char* what) const {
    if (status == MPE_OK) return;
    const std::string reason = status == MPE_ERR_DEVICE ? b.last_error() : "the input is wrong";
    throw std::runtime_error(std::string(what) + ": status " + std::to_string(status) + ": " +
                             (status == MPE_ERR_MEMORY ? "no memory" : reason));
  }
  void wait() const { check(b.synchronize(stream), "synchronize"); }

  const mpe_backend& b;
  void* const stream;
};

// An array in the device's memory, zero at first.
template <class T>
class Array {
 public:
  Array(const Device& device, int64_t size) : device_(device), size_(size) {
    void* p = nullptr;
    device.check(device.b.allocate(bytes(), MPE_PLACEMENT_DEVICE, &p), "allocate");
    data_ = static_cast<T*>(p);
    device.check(device.b.fill(p, 0, bytes(), device.stream), "fill");
  }
  Array(const Device& device, const std::vector<T>& values)
      : Array(device, static_cast<int64_t>(values.size())) {
    set(values);
  }
  ~Array() {
    device_.b.synchronize(device_.stream);
    device_.b.release(data_, MPE_PLACEMENT_DEVICE);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* get() const { return data_; }
  int64_t size() const { return size_; }

  void set(const std::vector<T>& values) {
    if (static_cast<int64_t>(values.size()) != size_) throw std::invalid_argument("another size");
    device_.check(device_.b.copy(data_, values.data(), bytes(), device_.stream), "copy");
  }
  std::vector<T> read() const {
    std::vector<T> values(static_cast<size_t>(size_));
    device_.check(device_.b.copy(values.data(), data_, bytes(), device_.stream), "copy");
    device_.wait();
    return values;
  }

 private:
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  const Device& device_;
  int64_t size_;
  T* data_ = nullptr;
};

class Embedding {
 public:
  Embedding(const Device& device, const Sizes& sizes, uint64_t seed);

  // Looks a batch of sum-pooled bags up: batch_size + 1 offsets, num_indices indices.
  void forward(const std::vector<int64_t>& indices, const std::vector<int64_t>& offsets);
  // Updates the rows of that batch with the gradient in `grad`.
  void backward(float lr);
  // Writes every changed row of the cache back to the table.
  void flush();
  // Throws what a device found wrong with a batch or an update since the last time.
  void check() const;
  // Every array of the state, one after the other.
  std::vector<uint8_t> bytes() const;
  int64_t stat(int which) const { return stats_.read()[static_cast<size_t>(which)]; }

 private:
  void admit();

  const Device& d_;
  const Sizes sizes_;
  // The state.
  Array<uint8_t> rows_;
  Array<float> state_;
  Array<uint64_t> tags_;
  Array<uint32_t> meta_;
  Array<float> cached_;
  Array<uint64_t> counters_;
  Array<uint8_t> sketch_;
  Array<int64_t> stats_;
  Array<uint64_t> step_;
  // A batch, and what is worked out from it.
  Array<int64_t> indices_, offsets_;
  Array<uint64_t> keys_, unique_;
  Array<int32_t> bags_, positions_, slots_, fresh_, each_;
  Array<int64_t> bag_offsets_, origins_, dropped_, count_, starts_;
  Array<mpe_error> errors_;  // of the offsets, of the indices, kept, of updates

 public:
  Array<float> out, grad;  // batch_size x dim

 private:
  Array<mpe_table> device_table_;
  mpe_table table_{};
  mpe_cache cache_{};
  mpe_group group_{};
  mpe_batch batch_{};
  mpe_lookups lookups_{};
  mpe_unique rows_of_batch_{};
};

// The power of two that is at least the number of slots.
inline int64_t sketch_width(const Sizes& s) {
  int64_t width = 1;
  while (width < int64_t{s.num_sets} * s.ways) width *= 2;
  return width;
}

inline Embedding::Embedding(const Device& device, const Sizes& s, uint64_t seed)
    : d_(device),
      sizes_(s),
      rows_(device, s.rows * mpe_row_bytes(MPE_format_int4, s.dim)),
      state_(device, s.rows),
      tags_(device, std::vector<uint64_t>(static_cast<size_t>(s.num_sets) * s.ways, MPE_EMPTY_TAG)),
      meta_(device, tags_.size()),
      cached_(device, tags_.size() * s.dim),
      counters_(device, 2),
      sketch_(device, MPE_SKETCH_ROWS * sketch_width(s)),
      stats_(device, MPE_NUM_STATS),
      step_(device, 1),
      indices_(device, s.num_indices),
      offsets_(device, s.batch_size + 1),
      keys_(device, s.num_indices),
      unique_(device, s.num_indices),
      bags_(device, s.num_indices),
      positions_(device, s.num_indices),
      slots_(device, s.num_indices),
      fresh_(device, s.num_indices),
      each_(device, s.num_indices),
      bag_offsets_(device, s.batch_size + 1),
      origins_(device, 1),
      dropped_(device, 1),
      count_(device, 1),
      starts_(device, s.num_indices + 1),
      errors_(device, std::vector<mpe_error>(4, mpe_error MPE_NO_ERROR)),
      out(device, s.batch_size * s.dim),
      grad(device, s.batch_size * s.dim),
      device_table_(device, 1) {
  table_.rows = rows_.get();
  table_.state = state_.get();
  table_.stats = stats_.get();
  table_.num_rows = s.rows;
  table_.precision = MPE_format_int4;
  table_.pooling = MPE_pooling_sum;
  table_.state_format = MPE_format_fp32;
  device_table_.set({table_});
  cache_.tags = tags_.get();
  cache_.meta = meta_.get();
  cache_.rows = cached_.get();
  cache_.sketch = sketch_.get();
  cache_.counters = counters_.get();
  cache_.num_sets = s.num_sets;
  cache_.sketch_width = sketch_width(s);
  cache_.ways = s.ways;
  cache_.policy = MPE_policy_lfu;
  group_.tables = &table_;
  group_.device_tables = device_table_.get();
  group_.cache = &cache_;
  group_.step = step_.get();
  group_.seed = seed;
  group_.num_tables = 1;
  group_.dim = s.dim;
  group_.rounding = MPE_rounding_stochastic;
  batch_.indices = indices_.get();
  batch_.offsets = offsets_.get();
  batch_.num_indices = s.num_indices;
  batch_.batch_size = s.batch_size;
  batch_.num_features = 1;
  batch_.index_bits = batch_.offset_bits = 64;
  lookups_ = mpe_lookups{s.num_indices,      s.batch_size,   keys_.get(),    bags_.get(),
                         bag_offsets_.get(), origins_.get(), dropped_.get(), nullptr};
  rows_of_batch_ = mpe_unique{count_.get(), unique_.get(), starts_.get(), positions_.get()};
  const float bound = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.rows)));
  d_.check(d_.b.init_rows(&group_, 0, MPE_init_uniform, -bound, bound, d_.stream), "init_rows");
}

inline void Embedding::forward(const std::vector<int64_t>& indices,
                               const std::vector<int64_t>& offsets) {
  indices_.set(indices);
  offsets_.set(offsets);
  mpe_error* errors = errors_.get();
  d_.check(d_.b.check_offsets(&batch_, d_.stream, errors), "check_offsets");
  d_.check(d_.b.prepare(&group_, &batch_, 0, errors, &lookups_, d_.stream, errors + 1), "prepare");
  // The CPU has said what is wrong by now; a device empties such a batch and keeps its error.
  d_.check(d_.b.discard(&group_, &lookups_, errors, 2, errors + 2, d_.stream), "discard");
  const uint64_t limit = static_cast<uint64_t>(sizes_.rows);
  d_.check(d_.b.dedup(keys_.get(), lookups_.n, limit, &rows_of_batch_, d_.stream), "dedup");
  admit();
  const mpe_outputs outputs{{out.get(), sizes_.dim}, nullptr};
  const mpe_lookup_args part{&group_, &lookups_, each_.get(), &outputs};
  d_.check(d_.b.lookup(&part, 1, d_.stream), "lookup");
}

// Brings the batch's rows into the cache and finds the slot of each lookup.
inline void Embedding::admit() {
  const int64_t n = lookups_.n;
  d_.check(d_.b.advance(step_.get(), d_.stream), "advance");
  d_.check(d_.b.cache_admit(&group_, &rows_of_batch_, n, slots_.get(), d_.stream), "cache_admit");
  d_.check(d_.b.count(&group_, &lookups_, nullptr, 0, 1, d_.stream), "count");
  d_.check(d_.b.cache_refresh(&group_, &rows_of_batch_, n, slots_.get(), fresh_.get(), d_.stream),
           "cache_refresh");
  d_.check(d_.b.scatter_slots(&rows_of_batch_, fresh_.get(), n, each_.get(), d_.stream),
           "scatter_slots");
}

inline void Embedding::backward(float lr) {
  const mpe_optimizer optimizer{
      MPE_optimizer_rowwise_adagrad, MPE_decay_none, lr, 1e-8f, 0.0f, nullptr};
  const mpe_outputs gradient{{grad.get(), sizes_.dim}, nullptr};
  d_.check(d_.b.advance(step_.get(), d_.stream), "advance");
  d_.check(d_.b.update(&group_, &optimizer, &lookups_, &rows_of_batch_, fresh_.get(), &gradient,
                       errors_.get() + 3, d_.stream),
           "update");
  d_.check(d_.b.cache_release(&cache_, &rows_of_batch_, lookups_.n, slots_.get(), d_.stream),
           "cache_release");
}

inline void Embedding::flush() {
  d_.check(d_.b.advance(step_.get(), d_.stream), "advance");
  d_.check(d_.b.cache_flush(&group_, d_.stream), "cache_flush");
}

inline void Embedding::check() const {
  const std::vector<mpe_error> errors = errors_.read();
  if (errors[2].status != MPE_OK) {
    throw std::runtime_error("batch: index " + std::to_string(errors[2].value) + " at position " +
                             std::to_string(errors[2].position) + " is out of range");
  }
  if (errors[3].status != MPE_OK) {
    throw std::runtime_error(std::to_string(errors[3].count) + " updates were not finite");
  }
}

inline std::vector<uint8_t> Embedding::bytes() const {
  std::vector<uint8_t> all;
  const auto append = [&all](const auto& array) {
    const auto values = array.read();
    const uint8_t* begin = reinterpret_cast<const uint8_t*>(values.data());
    all.insert(all.end(), begin, begin + values.size() * sizeof(values[0]));
  };
  append(rows_), append(state_), append(tags_), append(meta_), append(cached_);
  append(counters_), append(sketch_), append(stats_), append(step_);
  return all;
}
