// Embedding tables for C++ programs: made, trained and served. All memory is the collection's; it
// works on any backend, and does what Python's EmbeddingBagCollection does, byte for byte.
//
//   mpembed::Collection emb({{"item", 100'000, 64, MPE_format_int4}}, options);
//   auto open = emb.forward(batch, out);
//   emb.backward(open, grad);
//
// Indices, outputs and gradients lie where the kernels run: on the CPU in any memory, on a device
// in an mpembed::Array or memory of the caller's. A call queues its work on the collection's stream
// and must not overlap another one of this collection. What is wrong with an argument is thrown as
// std::invalid_argument, an index as std::out_of_range, want of memory as std::bad_alloc, a
// backward of a loaded collection as std::logic_error, all else as std::runtime_error;
// mpembed/step.h says what has changed then.
#ifndef MPEMBED_COLLECTION_H
#define MPEMBED_COLLECTION_H

#include "mpembed/collection/errors.h"
#include "mpembed/collection/loading.h"
#include "mpembed/collection/open_batch.h"

namespace mpembed {

class Collection {
 public:
  // Makes the tables and draws their initial rows. A table that is trained needs an optimizer, its
  // own or that of the options.
  explicit Collection(const std::vector<TableConfig>& tables, const CollectionOptions& options = {},
                      const mpe_backend* backend = mpe_cpu_backend(), void* stream = nullptr)
      : device_(std::make_unique<Device>(backend, stream)) {
    detail::check_tables(tables);
    detail::check_optimizers(tables, options);
    storage_ = std::make_unique<detail::Storage>(*device_, tables, options,
                                                 detail::plan_groups(tables, options));
    for (size_t t = 0; t < tables.size(); ++t) draw_rows(t);
  }

  // Opens what Python's emb.save wrote, to serve it: the tables are frozen, and backward refuses.
  static Collection load(const std::string& path, const mpe_backend* backend = mpe_cpu_backend(),
                         void* stream = nullptr) {
    return Collection(detail::Checkpoint(path), std::make_unique<Device>(backend, stream));
  }

  // ---- batches ----

  // A batch of this collection's tables, table-major: bag b of table t ends at
  // offsets[t * batch_size + b + 1]. Nothing is copied.
  template <class Index, class Offset>
  mpe_batch batch(const Index* indices, int64_t num_indices, const Offset* offsets,
                  int64_t num_offsets, const float* weights = nullptr) const {
    static_assert(sizeof(Index) == 4 || sizeof(Index) == 8, "indices have 32 or 64 bits");
    static_assert(sizeof(Offset) == 4 || sizeof(Offset) == 8, "offsets have 32 or 64 bits");
    const int64_t tables = static_cast<int64_t>(configs().size());
    detail::require(num_offsets > 0 && (num_offsets - 1) % tables == 0,
                    "there must be " + std::to_string(tables) +
                        " offsets a bag and one more, got " + std::to_string(num_offsets));
    return mpe_batch{indices,
                     offsets,
                     weights,
                     num_indices,
                     (num_offsets - 1) / tables,
                     static_cast<int32_t>(tables),
                     8 * static_cast<int32_t>(sizeof(Index)),
                     8 * static_cast<int32_t>(sizeof(Offset))};
  }
  // The same of vectors or Arrays.
  template <class Indices, class Offsets>
  mpe_batch batch(const Indices& indices, const Offsets& offsets) const {
    return batch(indices.data(), static_cast<int64_t>(indices.size()), offsets.data(),
                 static_cast<int64_t>(offsets.size()));
  }

  // Columns of the outputs of all tables.
  int64_t width() const { return storage_->width(); }

  // Outputs without any change of state. out: batch_size rows of width() columns; where a table is
  // unpooled and there are several, mpe_results with a matrix a table.
  void evaluate(const mpe_batch& batch, const mpe_results& out) {
    const OpenBatch open = open_batch(batch);
    check(mpe_evaluate(open.handle(), &out, stream()), "a lookup");
  }
  void evaluate(const mpe_batch& batch, float* out) { evaluate(batch, shared(out)); }

  // Outputs in training: the batch's rows are admitted to the caches and stay there until its
  // backward.
  OpenBatch forward(const mpe_batch& batch, const mpe_results& out) {
    OpenBatch open = open_batch(batch);
    forward(open, out);
    return open;
  }
  OpenBatch forward(const mpe_batch& batch, float* out) { return forward(batch, shared(out)); }

  // The same in two calls: the admission ahead, then the lookup.
  OpenBatch prefetch(const mpe_batch& batch) {
    OpenBatch open = open_batch(batch);
    check(mpe_admit(open.handle(), stream()), "a prefetch");
    return open;
  }
  void forward(OpenBatch& open, const mpe_results& out) {
    detail::require(open.handle() != nullptr, "the batch was used in a backward or dropped");
    check(mpe_forward(open.handle(), nullptr, &out, stream()), "a forward");
  }
  void forward(OpenBatch& open, float* out) { forward(open, shared(out)); }

  // One update from open batches, each row's gradient summed over all of them in their order:
  // emb.backward({{one, grad_of_one}, {two, grad_of_two}}). Rows whose update would not be finite
  // keep their values, and all others are updated; the CPU then throws at once, a device in check.
  void backward(const std::vector<Gradient>& batches) {
    std::vector<mpe_batch_gradient> given;
    for (const Gradient& one : batches) {
      float* grad = const_cast<float*>(one.grad);  // only read
      given.push_back({one.batch.handle(), shared(grad), one.weight_grad});
    }
    update(given);
    for (const Gradient& one : batches) one.batch.drop();
    check_on_cpu();
  }
  // The same with a matrix a table, for unpooled tables beside others.
  void backward(const std::vector<mpe_batch_gradient>& batches) {
    update(batches);
    check_on_cpu();
  }
  // One batch: the gradient of its outputs, and room for that of its weights, or NULL.
  void backward(OpenBatch& open, const mpe_results& grad, float* weight_grad = nullptr) {
    update({{open.handle(), grad, weight_grad}});
    open.drop();
    check_on_cpu();
  }
  void backward(OpenBatch& open, const float* grad, float* weight_grad = nullptr) {
    backward(open, shared(const_cast<float*>(grad)), weight_grad);
  }

  // Throws what a device's kernels found wrong since the last time: an index, offsets, updates that
  // would not have been finite. Waits for it. The CPU's calls have thrown that by themselves.
  void check() {
    std::vector<mpe_error> errors(1 + static_cast<size_t>(storage_->collection()->num_groups));
    check(mpe_take_errors(storage_->collection(), stream(), errors.data()), "a check");
    detail::throw_batch_error(errors[0], configs());
    detail::throw_update_errors(*storage_->collection(), errors.data() + 1, configs());
  }

  // ---- rows and settings ----

  // Writes every changed row of the caches back to its table.
  void flush() { check(mpe_flush(storage_->collection(), stream()), "a flush"); }

  // Values of rows as they are now, cached or not.
  std::vector<float> rows(const std::string& table, const std::vector<int64_t>& ids) {
    const size_t t = find(table);
    Array<float> values(*device_, static_cast<int64_t>(ids.size()) * configs()[t].dim);
    const Array<uint64_t> keys(*device_, keys_of(t, ids));
    check(device_->backend().read_rows(&group_of(t), keys.data(), keys.size(), values.data(),
                                       stream()),
          "reading rows");
    return values.read();
  }
  // Sets rows; no id may come twice.
  void set_rows(const std::string& table, const std::vector<int64_t>& ids,
                const std::vector<float>& values) {
    const size_t t = find(table);
    const int64_t n = static_cast<int64_t>(ids.size()), dim = configs()[t].dim;
    detail::require(static_cast<int64_t>(values.size()) == n * dim, "values must be ids x dim");
    const std::vector<uint64_t> unique = keys_of(t, ids);
    detail::require(std::set<uint64_t>(unique.begin(), unique.end()).size() == unique.size(),
                    "an id comes twice");
    const Array<uint64_t> keys(*device_, unique);
    const Array<float> data(*device_, values);
    const Array<mpe_error> error(*device_, 1);
    check(device_->backend().check_values(data.data(), n, dim, configs()[t].precision, stream(),
                                          error.data()),
          "values that the format cannot store");
    detail::require(error.read()[0].status == MPE_OK, "values that the format cannot store");
    const int32_t group = static_cast<int32_t>(storage_->place(t).group);
    check(mpe_write_rows(storage_->collection(), group, keys.data(), n, data.data(), stream()),
          "setting rows");
  }
  // The packed rows of a table, one after the other. Changed rows of the cache are not among them
  // before a flush.
  std::vector<uint8_t> packed_rows(const std::string& table) {
    const size_t t = find(table);
    const detail::Records& records = storage_->records(t);
    const int64_t bytes = mpe_row_bytes(configs()[t].precision, configs()[t].dim);
    const std::vector<uint8_t> all = records.memory().read();
    std::vector<uint8_t> packed;
    for (int64_t r = 0; r < configs()[t].num_rows; ++r) {
      const auto row = all.begin() + r * records.stride(0);
      packed.insert(packed.end(), row, row + bytes);
    }
    return packed;
  }

  // A table's counters, by MPE_stat_...
  std::vector<int64_t> stats(const std::string& table) {
    const std::vector<int64_t> all = storage_->stats().read();
    const auto first = all.begin() + static_cast<int64_t>(find(table)) * MPE_NUM_STATS;
    return std::vector<int64_t>(first, first + MPE_NUM_STATS);
  }
  // A table's sums over a sample of the writes of its rows, by MPE_noise_...
  std::vector<int64_t> noise(const std::string& table) {
    const std::vector<int64_t> all = storage_->noise().read();
    const auto first = all.begin() + static_cast<int64_t>(find(table)) * MPE_NUM_NOISE_SUMS;
    return std::vector<int64_t>(first, first + MPE_NUM_NOISE_SUMS);
  }
  // Changes a parameter of a table's optimizer, such as "lr", from its next update on.
  void set_parameter(const std::string& table, const std::string& parameter, double value) {
    const size_t t = find(table);
    const mpe_optimizer* used = group_of(t).optimizer;
    detail::require(used != nullptr, "table '" + table + "' is frozen and has no optimizer");
    const std::string own = detail::optimizer_text(used->kind, "table '" + table + "'");
    const int32_t place = detail::parameter_place(used->kind, parameter, own);
    detail::check_parameter(used->kind, used->decay_mode, parameter, value, own);
    storage_->set_parameter(t, place, value);
  }

  const std::vector<TableConfig>& configs() const { return storage_->configs(); }
  const Device& device() const { return *device_; }
  // What the functions of mpembed/step.h take.
  mpe_collection* fields() { return storage_->collection(); }

 private:
  Collection(detail::Checkpoint checkpoint, std::unique_ptr<Device> device)
      : device_(std::move(device)) {
    CollectionOptions options;
    options.seed = checkpoint.info.seed;
    options.rounding = checkpoint.info.rounding;
    options.drop = checkpoint.info.drop != 0;
    const std::vector<detail::GroupPlan> plans = detail::plans_of(checkpoint, &options);
    storage_ = std::make_unique<detail::Storage>(*device_, checkpoint.tables(), options, plans);
    detail::fill(*device_, checkpoint, storage_.get());
    loaded_ = true;
  }

  void* stream() const { return device_->stream(); }
  void check(mpe_status status, const char* what) const { device_->check(status, what); }
  // One matrix for the outputs of all tables, side by side.
  mpe_results shared(float* out) const {
    return mpe_results{{out, width()}, nullptr, MPE_format_fp32};
  }
  const mpe_group& group_of(size_t table) const {
    return storage_->fields(storage_->place(table).group);
  }

  size_t find(const std::string& table) const {
    for (size_t t = 0; t < configs().size(); ++t) {
      if (configs()[t].name == table) return t;
    }
    throw std::invalid_argument("there is no table '" + table + "'");
  }

  std::vector<uint64_t> keys_of(size_t table, const std::vector<int64_t>& ids) const {
    const int64_t base = group_of(table).tables[storage_->place(table).place].base;
    std::vector<uint64_t> keys;
    for (const int64_t id : ids) {
      detail::require_number("a row of table '" + configs()[table].name + "'", id, 0,
                             configs()[table].num_rows - 1);
      keys.push_back(static_cast<uint64_t>(base + id));
    }
    return keys;
  }

  void draw_rows(size_t table) {
    const TableConfig& config = configs()[table];
    const int64_t own = config.first_row + config.num_rows;
    const int64_t total = std::max<int64_t>(config.total_rows < 0 ? own : config.total_rows, 1);
    const float bound = static_cast<float>(1.0 / std::sqrt(static_cast<double>(total)));
    const InitConfig init = config.init.value_or(InitConfig{MPE_init_uniform, -bound, bound});
    check(device_->backend().init_rows(&group_of(table),
                                       static_cast<int32_t>(storage_->place(table).place),
                                       init.kind, init.a, init.b, stream()),
          "drawing initial rows");
  }

  OpenBatch open_batch(const mpe_batch& batch) {
    mpe_open_batch* handle = nullptr;
    mpe_error error;
    const mpe_status status = mpe_open(storage_->collection(), &batch, stream(), &handle, &error);
    if (status == MPE_ERR_INDEX || status == MPE_ERR_OFFSETS) {
      detail::throw_batch_error(error, configs());
    }
    check(status, "opening a batch of other tables or of too many indices");
    return OpenBatch(*device_, handle);
  }

  void update(const std::vector<mpe_batch_gradient>& batches) {
    bool weights = false;
    for (const mpe_batch_gradient& one : batches) {
      detail::require(one.batch != nullptr, "a batch was used in a backward or dropped");
      weights = weights || one.weight_grad != nullptr;
    }
    if (loaded_ && !weights) {
      throw std::logic_error(
          "a backward has nothing to train: the tables of a loaded checkpoint are frozen");
    }
    check(mpe_backward(storage_->collection(), batches.data(), static_cast<int32_t>(batches.size()),
                       stream()),
          "a backward of a batch that comes twice, had no forward, or is another collection's");
  }
  void check_on_cpu() {
    if (device_->is_cpu()) check();
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<detail::Storage> storage_;
  bool loaded_ = false;
};

}  // namespace mpembed

#endif
