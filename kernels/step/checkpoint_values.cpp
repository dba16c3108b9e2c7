// What arrays of a checkpoint hold, before kernels trust it: every row finite and within its
// format, every cached row once, in its set and within its table's format. Python's side is
// mpembed/_collection/state_checks.py.
#include <algorithm>
#include <array>
#include <map>
#include <new>

#include "mpembed/cache.h"
#include "step/manifest.h"

namespace mpembed::checkpoint {
namespace {

constexpr int64_t kPieceFloats = int64_t{1} << 20;  // decoded at once

void check(mpe_status status) {
  if (status == MPE_ERR_MEMORY) throw std::bad_alloc();
}

// Refuses FP32 rows that a precision cannot store.
void check_finite(const std::string& name, const float* rows, int64_t n, int64_t dim,
                  int32_t precision) {
  mpe_error error = MPE_NO_ERROR;
  check(mpe_cpu_backend()->check_values(rows, n, dim, precision, nullptr, &error));
  if (error.status != MPE_OK) {
    throw Error(name + " is not finite or exceeds the range of " + kFormats[precision] + " in " +
                std::to_string(error.count) + " row(s)");
  }
}

// The first and the last code of a format with a scale and a bias, as they are packed.
std::vector<uint8_t> end_codes(int32_t precision) {
  constexpr std::array<float, 2> kEnds = {0.0f, 1.0f};
  std::vector<uint8_t> row(static_cast<size_t>(mpe_row_bytes(precision, 2)));
  check(mpe_cpu_backend()->quantize(kEnds.data(), 1, 2, precision, MPE_rounding_nearest, 0, 0,
                                    row.data(), nullptr));
  row.resize(static_cast<size_t>(mpe_code_bytes(precision, 2)));
  return row;
}

void check_decoded(const std::string& name, const uint8_t* rows, int64_t n, int64_t dim,
                   int32_t precision) {
  std::vector<float> values(static_cast<size_t>(n * dim));
  check(mpe_cpu_backend()->dequantize(rows, n, dim, precision, values.data(), nullptr));
  check_finite(name, values.data(), n, dim, precision);
}

// Packed rows. Values of a row with a scale and a bias lie between those of the first and the last
// code.
void check_rows(const std::string& name, const Table& table, const uint8_t* rows) {
  const int32_t precision = table.fields.precision;
  const int64_t dim = table.fields.dim, row_bytes = mpe_row_bytes(precision, dim);
  const int64_t header = mpe_code_bytes(precision, dim);
  const bool affine = header < row_bytes;
  const std::vector<uint8_t> codes = affine ? end_codes(precision) : std::vector<uint8_t>();
  const int64_t piece = std::max<int64_t>(1, kPieceFloats / (affine ? 2 : dim));
  std::vector<uint8_t> ends;
  for (int64_t begin = 0; begin < table.fields.num_rows; begin += piece) {
    const int64_t n = std::min(piece, table.fields.num_rows - begin);
    const uint8_t* first = rows + begin * row_bytes;
    if (!affine) {
      check_decoded(name, first, n, dim, precision);
      continue;
    }
    ends.clear();
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* row = first + i * row_bytes;
      ends.insert(ends.end(), codes.begin(), codes.end());
      ends.insert(ends.end(), row + header, row + row_bytes);
    }
    check_decoded(name, ends.data(), n, 2, precision);
  }
}

// Each slot is empty, or holds a row of the group's tables once, in its set, without pins. The tags
// are kept: the cache's rows are checked by them, so another reading may not find others.
void check_tags(const std::string& name, const uint64_t* tags, Group* group) {
  const int64_t ways = group->fields.ways, slots = group->fields.num_sets * ways;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (tags[slot] == MPE_EMPTY_TAG) continue;
    const uint64_t id = tags[slot] & MPE_ID_MASK;
    const int64_t found = probe(tags, group->fields.num_sets, group->fields.ways, id);
    if ((tags[slot] & ~(MPE_ID_MASK | MPE_DIRTY_BIT)) != 0 || found != slot ||
        id >= static_cast<uint64_t>(group->ends.back())) {
      throw Error(name + ": its cache tags are damaged");
    }
  }
  if (group->tags.empty()) group->tags.assign(tags, tags + slots);
  if (!std::equal(group->tags.begin(), group->tags.end(), tags)) {
    throw Error(name + " has changed since it was read before");
  }
}

// The format of the table that a row of a group is in.
int32_t precision_of(const Manifest& manifest, const Group& group, uint64_t row) {
  const auto table =
      std::upper_bound(group.ends.begin(), group.ends.end(), static_cast<int64_t>(row));
  const int32_t place = group.tables[static_cast<size_t>(table - group.ends.begin())];
  return manifest.tables[static_cast<size_t>(place)].fields.precision;
}

// Slots with their states are finite, and each row fits into its table.
void check_cached(const std::string& name, const Manifest& manifest, const Group& group,
                  const float* slots) {
  const int64_t dim = group.fields.dim, floats = group.fields.slot_floats;
  check_finite(name, slots, static_cast<int64_t>(group.tags.size()), floats, MPE_format_fp32);
  std::map<int32_t, std::vector<float>> rows;  // by precision
  const auto check_some = [&](int32_t precision, std::vector<float>* some) {
    check_finite(name, some->data(), static_cast<int64_t>(some->size()) / dim, dim, precision);
    some->clear();
  };
  for (size_t slot = 0; slot < group.tags.size(); ++slot) {
    if (group.tags[slot] == MPE_EMPTY_TAG) continue;
    const int32_t precision = precision_of(manifest, group, group.tags[slot] & MPE_ID_MASK);
    if (precision == MPE_format_fp32) continue;
    const float* row = slots + static_cast<int64_t>(slot) * floats;
    std::vector<float>& some = rows[precision];
    some.insert(some.end(), row, row + dim);
    if (static_cast<int64_t>(some.size()) >= kPieceFloats) check_some(precision, &some);
  }
  for (auto& [precision, some] : rows) check_some(precision, &some);
}

void keep_tags(const File& file, Group* group) {
  const int64_t slots = group->fields.num_sets * group->fields.ways;
  std::vector<uint64_t> tags(static_cast<size_t>(slots));
  const std::string name = group->name_of("tags");
  file.read(name, tags.data(), slots * static_cast<int64_t>(sizeof tags[0]));
  check_tags(name, tags.data(), group);
}

void check_counts(const std::string& name, const uint32_t* counts, int64_t n) {
  if (std::any_of(counts, counts + n, [](uint32_t count) { return count > MPE_MAX_COUNT; })) {
    throw Error(name + " has a count above " + std::to_string(MPE_MAX_COUNT));
  }
}

void check_counters(const std::string& name, const Group& group, const uint64_t* counters) {
  const bool counts = mpe_policy_has_sketch(group.fields.policy) != 0;
  const int64_t slots = group.fields.num_sets * group.fields.ways;
  if (counters[1] >= (counts ? static_cast<uint64_t>(MPE_HALVING_PERIOD * slots) : 1)) {
    throw Error(name + " has more samples than a cache counts");
  }
}

void check_stats(const std::string& name, const int64_t* stats, int64_t n) {
  if (std::any_of(stats, stats + n, [](int64_t count) { return count < 0; })) {
    throw Error(name + " has a count below 0");
  }
}

}  // namespace

void check_values(const File& file, Manifest* manifest, const std::string& name, const Array& array,
                  const void* values) {
  const auto group = [&]() -> Group& { return manifest->groups[array.owner]; };
  switch (array.holds) {
    case Holds::kTableRows:
      check_rows(name, manifest->tables[array.owner], static_cast<const uint8_t*>(values));
      break;
    case Holds::kTags:
      check_tags(name, static_cast<const uint64_t*>(values), &group());
      break;
    case Holds::kCounts:
      check_counts(name, static_cast<const uint32_t*>(values), array.shape[0] * array.shape[1]);
      break;
    case Holds::kCounters:
      check_counters(name, group(), static_cast<const uint64_t*>(values));
      break;
    case Holds::kCacheRows:
      if (group().tags.empty()) keep_tags(file, &group());
      check_cached(name, *manifest, group(), static_cast<const float*>(values));
      break;
    case Holds::kStats:
      check_stats(name, static_cast<const int64_t*>(values), array.shape[0] * array.shape[1]);
      break;
    case Holds::kOther:
      break;
  }
}

}  // namespace mpembed::checkpoint
