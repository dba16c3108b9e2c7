// Conversions of whole matrices (quantize, dequantize, bit packing, stochastic rounding), row
// writes and initial values.
#include "cpu/before_write.h"
#include "cpu/encode.h"
#include "cpu/kernels.h"
#include "cpu/slots.h"
#include "mpembed/init.h"

MPE_BEGIN
namespace {

constexpr int64_t kTaskBytes = 65536;  // of FP32 values

// For rows that overwrite none: paired rounding has nothing to pair with.
int32_t rounding_of_new_rows(int32_t rounding) {
  return rounding == MPE_rounding_paired ? MPE_rounding_stochastic : rounding;
}

inline int64_t row_tasks(int64_t n, int64_t dim) {
  return task_count(n, kTaskBytes / (dim * 4) + 1);
}

// A group of one table, for calls that have only a matrix.
struct SingleTableGroup {
  mpe_table table{};
  mpe_group group{};

  SingleTableGroup(uint8_t* rows, int64_t n, int64_t dim, int32_t precision) {
    table.rows = rows;
    table.row_stride = mpe_row_bytes(precision, dim);
    table.num_rows = n;
    table.precision = precision;
    group.tables = &table;
    group.num_tables = 1;
    group.dim = static_cast<int32_t>(dim);
  }
};

template <int kBits>
void pack_row(const uint8_t* codes, int64_t dim, uint8_t* packed) {
  constexpr int kPerByte = 8 / kBits;
  constexpr uint32_t kMask = (1u << kBits) - 1u;
  for (int64_t b = 0; b < ceil_div(dim, kPerByte); ++b) {
    uint32_t byte = 0;
    for (int64_t c = b * kPerByte; c < min64(dim, (b + 1) * kPerByte); ++c) {
      byte |= (codes[c] & kMask) << (kBits * (c % kPerByte));
    }
    packed[b] = static_cast<uint8_t>(byte);
  }
}

template <int kBits>
void unpack_row(const uint8_t* packed, int64_t dim, uint8_t* codes) {
  constexpr int kPerByte = 8 / kBits;
  constexpr uint32_t kMask = (1u << kBits) - 1u;
  for (int64_t c = 0; c < dim; ++c) {
    const uint32_t byte = packed[c / kPerByte];
    codes[c] = static_cast<uint8_t>((byte >> (kBits * (c % kPerByte))) & kMask);
  }
}

// Calls encode(i, encoder) for each of n rows. `values`: the encoder has room for their values.
template <class Encode>
mpe_status encode_each(const mpe_group& group, int64_t n, bool values, Encode encode) {
  const int64_t tasks = row_tasks(n, group.dim);
  const EncoderWorkspace workspace(tasks, group.dim, values);
  if (!workspace.ok()) return MPE_ERR_MEMORY;
  parallel_range(n, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    RowEncoder encoder(group, kDomainRow, workspace, task);
    for (int64_t i = begin; i < end; ++i) encode(i, encoder);
  });
  return MPE_OK;
}

void init_values(const mpe_group& group, const mpe_table& table, int64_t row, int32_t kind, float a,
                 float b, float* x) {
  if (kind == MPE_init_zeros) {
    memset(x, 0, static_cast<size_t>(group.dim) * sizeof(float));
    return;
  }
  const RowStream stream = row_stream(group, kDomainInit, table, row);
  for (int64_t block = 0; block * 4 < group.dim; ++block) {
    const Philox4 words = stream.block(static_cast<uint32_t>(block));
    for (int64_t c = block * 4; c < min64(group.dim, block * 4 + 4); ++c) {
      const uint32_t draw = words.w[c % 4] >> 8;
      x[c] = kind == MPE_init_uniform ? uniform_value(draw, a, b) : normal_value(draw, a);
    }
  }
}

// The rows of one task that cannot be stored.
struct BadRows {
  int64_t count, first;
};

}  // namespace

mpe_status check_values(const float* x, int64_t n, int64_t dim, int32_t precision, void*,
                        mpe_error* error) {
  const uint32_t bound =
      with_format(precision, [](auto format) { return decltype(format)::kMaxAbsBits; });
  const int64_t tasks = row_tasks(n, dim);
  Workspace<BadRows> bad(tasks);
  if (!bad.ok()) return MPE_ERR_MEMORY;
  parallel_range(n, tasks, [&](int64_t task, int64_t begin, int64_t end) {
    int64_t count = 0, first = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (count_beyond(x + i * dim, dim, bound) != 0 && count++ == 0) first = i;
    }
    bad[task] = BadRows{count, first};
  });
  mpe_error found = MPE_NO_ERROR;
  for (int64_t task = 0; task < tasks; ++task) {
    if (bad[task].count == 0) continue;
    if (found.count == 0) found.position = bad[task].first;
    found.status = MPE_ERR_VALUE;
    found.count += bad[task].count;
  }
  *error = found;
  return static_cast<mpe_status>(found.status);
}

mpe_status quantize(const float* x, int64_t n, int64_t dim, int32_t precision, int32_t rounding,
                    uint64_t seed, uint64_t step, uint8_t* rows, void*) {
  SingleTableGroup single(rows, n, dim, precision);
  single.group.rounding = rounding_of_new_rows(rounding);
  single.group.seed = seed;
  single.group.step = &step;
  return encode_each(single.group, n, false, [&](int64_t i, RowEncoder& encoder) {
    encoder.add(single.table, i, x + i * dim);
  });
}

mpe_status dequantize(const uint8_t* rows, int64_t n, int64_t dim, int32_t precision, float* x,
                      void*) {
  parallel_range(n, row_tasks(n, dim), [&](int64_t begin, int64_t end) {
    with_format(precision, [&](auto format) {
      using Format = decltype(format);
      for (int64_t i = begin; i < end; ++i) {
        decode_row<Format>(rows + i * Format::row_bytes(dim), dim, x + i * dim);
      }
    });
  });
  return MPE_OK;
}

mpe_status check_codes(const uint8_t* codes, int64_t n, int32_t bits, void*, mpe_error* error) {
  *error = mpe_error MPE_NO_ERROR;
  for (int64_t i = 0; i < n; ++i) {
    if (codes[i] >> bits == 0) continue;
    if (error->count++ == 0) {
      error->status = MPE_ERR_VALUE;
      error->position = i;
      error->value = codes[i];
    }
  }
  return static_cast<mpe_status>(error->status);
}

mpe_status pack_codes(const uint8_t* codes, int64_t n, int64_t dim, int32_t bits, uint8_t* packed,
                      void*) {
  const int64_t bytes = ceil_div(dim * bits, 8);
  parallel_each(n, row_tasks(n, dim), [=](int64_t i) {
    (bits == 4 ? pack_row<4> : pack_row<2>)(codes + i * dim, dim, packed + i * bytes);
  });
  return MPE_OK;
}

mpe_status unpack_codes(const uint8_t* packed, int64_t n, int64_t dim, int32_t bits, uint8_t* codes,
                        void*) {
  const int64_t bytes = ceil_div(dim * bits, 8);
  parallel_each(n, row_tasks(n, dim), [=](int64_t i) {
    (bits == 4 ? unpack_row<4> : unpack_row<2>)(packed + i * bytes, dim, codes + i * dim);
  });
  return MPE_OK;
}

mpe_status stochastic_round(const float* x, int64_t n, int32_t precision, uint64_t seed,
                            uint64_t step, uint16_t* out, void*) {
  constexpr int64_t kRow = MPE_ROUND_COLUMNS;  // element i belongs to row i / kRow
  static_assert(kRow / 8 <= DrawBatch::kCapacity && kRow / 8 % DrawBatch::kBlocksAtOnce == 0);
  cpu::parallel(ceil_div(n, kRow), [&](int64_t row) {
    const int64_t begin = row * kRow, count = min64(kRow, n - begin);
    const RowStream stream(seed, kDomainRound, 0, static_cast<uint64_t>(row), step);
    uint16_t draws[kRow];
    DrawBatch batch;
    batch.add(stream, 0, kRow / 8);
    batch.run(seed, draws);
    for (int64_t i = 0; i < count; ++i) {
      out[begin + i] = precision == MPE_format_fp16 ? half_stochastic(x[begin + i], draws[i])
                                                    : bfloat_stochastic(x[begin + i], draws[i]);
    }
  });
  return MPE_OK;
}

mpe_status write_rows(const mpe_group* group, const uint64_t* keys, int64_t n, const float* values,
                      void*) {
  // All rows are probed before the first is written: a write changes a tag of its set.
  const mpe_cache* cache = group->cache;
  Workspace<int32_t> slots(cache != nullptr ? n : 0);
  if (!slots.ok()) return MPE_ERR_MEMORY;
  if (cache != nullptr) cache_locate(cache, keys, n, slots.get(), nullptr);
  const Slots cached(*group);
  return encode_each(*group, n, false, [&](int64_t i, RowEncoder& encoder) {
    const mpe_table& table = group->tables[find_table(*group, keys[i])];
    const float* x = values + i * group->dim;
    const int64_t slot = cache != nullptr ? slots[i] : -1;
    if (slot >= 0) {
      before_write(*cache, slot);
      memcpy(cached.row(slot), x, static_cast<size_t>(group->dim) * sizeof(float));
      cache->tags[slot] |= kTagDirty;
    } else {
      const int64_t row = static_cast<int64_t>(keys[i]) - table.base;
      before_write(table, row);
      encoder.add(table, row, x);
    }
  });
}

mpe_status init_rows(const mpe_group* group, int32_t t, int32_t kind, float a, float b, void*) {
  const mpe_table& table = group->tables[t];
  mpe_group first = *group;
  first.rounding = rounding_of_new_rows(group->rounding);
  return encode_each(first, table.num_rows, true, [&](int64_t row, RowEncoder& encoder) {
    float* x = encoder.next(table.precision);
    init_values(first, table, row, kind, a, b, x);
    before_write(table, row);
    encoder.add(table, row, x);
  });
}

MPE_END
