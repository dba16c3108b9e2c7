// A table's memory: rows and optimizer states, side by side where that helps an update.
#ifndef MPEMBED_COLLECTION_RECORDS_H
#define MPEMBED_COLLECTION_RECORDS_H

#include <algorithm>
#include <array>

#include "mpembed/collection/config.h"
#include "mpembed/collection/memory.h"
#include "mpembed/registry_types.h"

namespace mpembed::detail {

// The formats and initial values of an optimizer's states.
struct StateConfig {
  std::string name;
  int32_t format = MPE_format_fp32;
  float initial = 0.0f;
  int32_t shape = MPE_STATE_ELEMENT;
  int64_t values = 0;  // of a row

  int64_t bytes() const { return mpe_row_bytes(format, values); }
};

inline std::vector<StateConfig> states_of(const OptimizerConfig& optimizer, int32_t dim) {
  std::vector<StateConfig> states(static_cast<size_t>(mpe_num_states(optimizer.kind)));
  for (size_t i = 0; i < states.size(); ++i) {
    const int32_t number = static_cast<int32_t>(i);
    StateConfig& state = states[i];
    state.name = mpe_state_name(optimizer.kind, number);
    state.shape = mpe_state_shape(optimizer.kind, number);
    state.values = state.shape == MPE_STATE_ROW ? 1 : dim;
    const auto format = optimizer.state_formats.find(state.name);
    if (format != optimizer.state_formats.end()) state.format = format->second;
    const auto initial = optimizer.initial_values.find(state.name);
    state.initial = initial == optimizer.initial_values.end()
                        ? mpe_state_initial(optimizer.kind, number)
                        : initial->second;
  }
  return states;
}

// The memory of a table: a row beside its states of one value, in a record, and its states of a
// value an element beside each other in another: a forward does not read them. On the CPU a record
// has no padding. On a device each of its fields keeps the alignment of vector loads where that
// takes 1 % of padding at most; otherwise its fields are arrays of their own.
class Records {
 public:
  Records(const Device& device, const TableConfig& table, const std::vector<StateConfig>& states)
      : num_rows_(table.num_rows) {
    std::vector<size_t> beside{0}, apart;
    sizes_[0] = mpe_row_bytes(table.precision, table.dim);
    for (size_t i = 0; i < states.size(); ++i) {
      sizes_[i + 1] = states[i].bytes();
      (states[i].shape == MPE_STATE_ROW ? beside : apart).push_back(i + 1);
    }
    const int64_t most = device.is_cpu() ? 1 : kMaxAlignment;
    lay_out(beside, most);
    lay_out(apart, most);
    memory_ = Array<uint8_t>(device, total_, table.placement);
    fill(states);
  }

  // Number 0 is the row, then come the states.
  uint8_t* field(size_t i) const { return memory_.data() + first_[i] + offset_[i]; }
  int64_t stride(size_t i) const { return stride_[i]; }
  int64_t bytes() const { return memory_.bytes(); }
  const Array<uint8_t>& memory() const { return memory_; }

 private:
  static constexpr int64_t kMaxAlignment = 16, kBlock = 256;

  static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

  // Lays fields side by side behind what is there, or one after the other where padding would take
  // too much.
  void lay_out(const std::vector<size_t>& fields, int64_t most) {
    if (fields.empty()) return;
    int64_t end = 0, widest = 1, dense = 0;
    for (const size_t i : fields) {
      const int64_t unit = std::min(most, sizes_[i] & -sizes_[i]);
      offset_[i] = round_up(end, unit);
      end = offset_[i] + sizes_[i];
      widest = std::max(widest, unit);
      dense += sizes_[i];
    }
    const int64_t stride = round_up(end, widest);
    if (stride * 100 > dense * 101) {
      for (const size_t i : fields) lay_out({i}, most);
      return;
    }
    const int64_t first = round_up(total_, kBlock);
    for (const size_t i : fields) first_[i] = first, stride_[i] = stride;
    total_ = first + stride * num_rows_;
    records_.push_back(fields);
  }

  // Sets the states of every row; the memory is zero.
  void fill(const std::vector<StateConfig>& states) {
    for (const std::vector<size_t>& fields : records_) {
      std::vector<uint8_t> record(static_cast<size_t>(stride_[fields[0]]));
      for (const size_t i : fields) {
        if (i > 0) write_initial(states[i - 1], record.data() + offset_[i]);
      }
      repeat(record, first_[fields[0]]);
    }
  }

  static void write_initial(const StateConfig& state, uint8_t* to) {
    const std::vector<float> values(static_cast<size_t>(state.values), state.initial);
    with_state_format(state.format, [&](auto format) {
      decltype(format)::encode(values.data(), state.values, to, nullptr);
    });
  }

  // Writes the same bytes for every row, some thousand rows at a time.
  void repeat(const std::vector<uint8_t>& record, int64_t begin) {
    if (std::count(record.begin(), record.end(), 0) == static_cast<int64_t>(record.size())) return;
    const int64_t bytes = static_cast<int64_t>(record.size());
    const int64_t most = std::min<int64_t>(num_rows_, 1 + (int64_t{1} << 20) / bytes);
    std::vector<uint8_t> piece;
    for (int64_t i = 0; i < most; ++i) piece.insert(piece.end(), record.begin(), record.end());
    for (int64_t row = 0; row < num_rows_; row += most) {
      const int64_t rows = std::min(most, num_rows_ - row);
      memory_.write(begin + row * bytes, piece.data(), rows * bytes);
    }
  }

  int64_t num_rows_, total_ = 0;
  std::vector<std::vector<size_t>> records_;  // the fields of each
  // Of each field: its bytes, where its records begin, its place in one, and their stride.
  std::array<int64_t, 1 + MPE_MAX_STATES> sizes_{}, first_{}, offset_{}, stride_{};
  Array<uint8_t> memory_;
};

}  // namespace mpembed::detail

#endif
