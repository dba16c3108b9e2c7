// What the step refuses, and that nothing has changed then.
#include "world.h"

namespace {

using namespace step_tests;

void expect(bool right, const std::string& what) {
  if (!right) g_report += what + "\n";
}

class Refusals {
 public:
  explicit Refusals(const mpe_backend* backend) : w_(backend, 5, false), sample_(w_, 6, false) {}

  void run() {
    before_ = w_.state();
    fields();
    contents();
    batches();
  }

 private:
  mpe_status open(const mpe_batch& batch, mpe_error* error) {
    mpe_open_batch* made = nullptr;
    const mpe_status status = mpe_open(&w_.c, &batch, nullptr, &made, error);
    expect((made == nullptr) == (status != MPE_OK), "a refused batch has a handle");
    if (made != nullptr) mpe_close(made, nullptr);
    mpe_free(made);
    return status;
  }
  void refused(const mpe_batch& batch, mpe_status status, int64_t value, const char* what) {
    mpe_error error;
    expect(open(batch, &error) == status, std::string(what) + " is taken");
    expect(error.status == status && error.value == value, std::string(what) + " is not named");
    expect(w_.state() == before_, std::string(what) + " changes state");
  }

  void fields() {
    mpe_batch batch = sample_.batch;
    batch.num_features = 5;
    refused(batch, MPE_ERR_VALUE, 5, "a missing feature");
    batch = sample_.batch;
    batch.index_bits = 16;
    refused(batch, MPE_ERR_VALUE, 16, "an index of 16 bits");
    batch = sample_.batch;
    batch.batch_size = -1;
    refused(batch, MPE_ERR_VALUE, -1, "a negative size");
  }

  void contents() {
    mpe_batch batch = sample_.batch;
    const int64_t n = batch.num_indices;
    std::vector<int64_t> indices = w_.replica.read(static_cast<const int64_t*>(batch.indices), n);
    // The last position belongs to the last feature that has rows.
    indices[static_cast<size_t>(n - 1)] = 1'000'000;
    indices[static_cast<size_t>(n - 2)] = -3;
    batch.indices = w_.replica.make<int64_t>(n, indices.data());
    mpe_error error;
    expect(open(batch, &error) == MPE_ERR_INDEX, "an index out of range is taken");
    expect(error.position == n - 2 && error.value == -3 && error.count == 2,
           "the first index out of range is not named");
    const std::vector<int64_t> offsets(static_cast<size_t>(kTables * batch.batch_size + 1), 1);
    batch.offsets = w_.replica.make<int64_t>(static_cast<int64_t>(offsets.size()), offsets.data());
    refused(batch, MPE_ERR_OFFSETS, 1, "offsets that start at 1");
  }

  void batches() {
    mpe_open_batch* open_batch = nullptr;
    mpe_error error;
    expect(mpe_open(&w_.c, &sample_.batch, nullptr, &open_batch, &error) == MPE_OK, "open");
    mpe_batch_gradient pairs[2] = {{open_batch, sample_.gradients, nullptr},
                                   {open_batch, sample_.gradients, nullptr}};
    const auto refuses = [&](int32_t n, const char* what) {
      expect(mpe_backward(&w_.c, pairs, n, nullptr) == MPE_ERR_VALUE, what);
      expect(w_.state() == before_, std::string("state changes: ") + what);
    };
    refuses(1, "a backward before the forward");
    expect(mpe_forward(open_batch, open_batch, &sample_.outputs, nullptr) == MPE_ERR_VALUE,
           "a batch replaces itself");
    mpe_results others = sample_.outputs;
    others.format = MPE_format_int8;
    expect(mpe_forward(open_batch, nullptr, &others, nullptr) == MPE_ERR_VALUE,
           "an output in INT8 is taken");
    expect(mpe_evaluate(open_batch, &others, nullptr) == MPE_ERR_VALUE,
           "an output in INT8 is taken in evaluation");
    expect(w_.state() == before_, "an output in INT8 changes state");
    expect(mpe_admit(open_batch, nullptr) == MPE_OK, "admit");
    before_ = w_.state();
    expect(mpe_admit(open_batch, nullptr) == MPE_ERR_VALUE, "a batch is admitted twice");
    refuses(0, "a backward of nothing");
    refuses(2, "a batch comes twice");
    refuses(MPE_MAX_GRADIENTS + 1, "too many batches");
    other_collection(pairs);
    same_rows(open_batch);
    counts(open_batch);
    mpe_close(open_batch, nullptr);
    before_ = w_.state();
    refuses(1, "a backward of a closed batch");
    expect(mpe_forward(open_batch, nullptr, &sample_.outputs, nullptr) == MPE_ERR_VALUE,
           "a forward of a closed batch");
    int64_t none[kTables] = {};
    expect(mpe_count_lookups(open_batch, nullptr, none) == MPE_ERR_VALUE,
           "lookups of a closed batch");
    mpe_free(open_batch);
  }

  void other_collection(mpe_batch_gradient* pairs) {
    mpe_collection other = w_.c;
    expect(mpe_backward(&other, pairs, 1, nullptr) == MPE_ERR_VALUE, "another collection's batch");
    expect(w_.state() == before_, "another collection's batch changes state");
  }

  // The lookups of each feature, whatever the caller's offsets are by then.
  void counts(mpe_open_batch* open_batch) {
    const int64_t bags = sample_.batch.batch_size;
    int64_t found[kTables] = {};
    expect(mpe_count_lookups(open_batch, nullptr, found) == MPE_OK, "count");
    const auto* given = static_cast<const int64_t*>(sample_.batch.offsets);
    const std::vector<int64_t> offsets = w_.replica.read(given, kTables * bags + 1);
    for (int64_t t = 0; t < kTables; ++t) {
      const size_t first = static_cast<size_t>(t * bags), end = first + static_cast<size_t>(bags);
      expect(found[t] == offsets[end] - offsets[first], "the lookups of a feature are miscounted");
    }
  }

  void same_rows(mpe_open_batch* open_batch) {
    Sample other(w_, 7, false);
    mpe_open_batch *again = nullptr, *different = nullptr;
    mpe_error error;
    expect(mpe_open(&w_.c, &sample_.batch, nullptr, &again, &error) == MPE_OK, "open");
    expect(mpe_open(&w_.c, &other.batch, nullptr, &different, &error) == MPE_OK, "open");
    expect(mpe_same_rows(open_batch, again) == 1, "the same rows differ");
    expect(mpe_same_rows(open_batch, different) == 0, "other rows are the same");
    for (mpe_open_batch* batch : {again, different}) {
      mpe_close(batch, nullptr);
      mpe_free(batch);
    }
  }

  World w_;
  Sample sample_;
  std::vector<std::vector<uint8_t>> before_;
};

}  // namespace

// Of the CPU, which says what is wrong with a batch. Returns what was taken, or nothing.
extern "C" __attribute__((visibility("default"))) const char* step_refusals(
    const mpe_backend* backend) {
  g_report.clear();
  Refusals(backend).run();
  return g_report.c_str();
}
