// A row's gradient: occurrences in input order, in blocks of 64 whose partial sums are added in
// order (docs/numerics.md, section 5).
#pragma once

#include "cuda/outputs.cuh"
#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {

constexpr int64_t kBlock = MPE_GRADIENT_BLOCK;

// The batches of an update, one after the other: batch b has positions end[b - 1] .. end[b].
struct Batches {
  mpe_lookups lookups[MPE_MAX_GRADIENTS] = {};
  mpe_outputs grad[MPE_MAX_GRADIENTS] = {};
  uint32_t end[MPE_MAX_GRADIENTS];  // UINT32_MAX from the last batch on
  int32_t format;                   // of all gradients

  Batches(const mpe_gradient* gradients, int32_t n) : format(gradients[0].grad->format) {
    uint32_t first = 0;
    for (int32_t b = 0; b < MPE_MAX_GRADIENTS; ++b) {
      if (b < n) {
        lookups[b] = *gradients[b].lookups;
        grad[b] = *gradients[b].grad;
        first += static_cast<uint32_t>(lookups[b].n);
      }
      end[b] = b + 1 < n ? first : UINT32_MAX;
    }
  }
};

// What an update's kernels read. They read it from their parameters in place: a copy would be
// indexed in local memory.
struct Update {
  Tables tables;
  Rounding rounding;
  mpe_cache cache;
  int32_t decay_mode;
  const float* coefficients;  // MPE_MAX_COEFFICIENTS a table
  mpe_unique unique;
  const int32_t* slots;  // one per unique row, or NULL
  mpe_found found;       // by the admission that gave these, or NULL
  Batches batches;

  // Whether a slot's row is still that of its table.
  __device__ bool is_unchanged(uint32_t u) const {
    return found.slots != nullptr && found.slots[u] < 0 && *rounding.step == *found.step + 1;
  }

  __device__ int32_t dim() const { return tables.dim; }
};

// The rows with more than one block of occurrences: row u has consecutive blocks, of which
// row_block[u] is the first.
struct HotRows {
  int32_t* blocks;     // their number
  int32_t* row_block;  // one per unique row
  int32_t* block_row;  // the unique row of each block
  float* sums;         // one row per block, in whole chunks
  float* scratch;      // for long rows: kScratchRows of each tile
  int64_t stride;      // of the rows of sums and scratch
};

// An upper bound of the blocks: a hot row has at least 65 occurrences, so there are at most n / 65.
inline int64_t max_hot_blocks(int64_t n) { return n <= kBlock ? 0 : n / kBlock + n / (kBlock + 1); }

// The gradient of one occurrence, and the factor it is multiplied with.
struct Occurrence {
  const uint8_t* row;
  float factor;
};

// A table's gradients in the batch that holds a position. Positions ascend from one occurrence of a
// row to its next.
class TableGradients {
 public:
  __device__ __forceinline__ TableGradients(const Update& update, int32_t t)
      : update_(update), table_(update.tables.table[t]), t_(t) {
    enter(0);
  }

  __device__ __forceinline__ Occurrence at(int32_t position) {
    const uint32_t p = static_cast<uint32_t>(position);
    MPE_NO_UNROLL
    while (!kModel && p >= update_.batches.end[batch_]) enter(batch_ + 1);
    const mpe_lookups& lookups = update_.batches.lookups[batch_];
    const int64_t here = p - first_;
    const float weight = lookups.weights != nullptr ? lookups.weights[here] : 1.0f;
    const int64_t bag = lookups.bags[here];
    const bool unpooled = table_.pooling == MPE_pooling_none;
    Occurrence found;
    found.row = grads_.row(unpooled ? here - lookups.bag_offsets[first_bag_] : bag - first_bag_);
    found.factor = weight;
    if (table_.pooling == MPE_pooling_mean) {
      found.factor =
          weight / static_cast<float>(lookups.bag_offsets[bag + 1] - lookups.bag_offsets[bag]);
    }
    return found;
  }

 private:
  __device__ __forceinline__ void enter(int32_t batch) {
    const Batches& batches = update_.batches;
    batch_ = batch;
    first_ = batch == 0 ? 0 : batches.end[batch - 1];
    first_bag_ = t_ * batches.lookups[batch].batch_size;
    grads_ = OutputRows(batches.grad[batch], table_, t_);
  }

  const Update& update_;
  const mpe_table& table_;
  OutputRows grads_;
  int64_t first_bag_;
  uint32_t first_;
  int32_t t_, batch_;
};

// sum += factor * row for kRows occurrences in order: those that lane `first` and the following
// have found.
template <int kRows, bool kLong>
__device__ __forceinline__ void add_rows(const Tile& tile, const Update& update,
                                         const Occurrence& mine, int first,
                                         RowFragment<kLong>& sum) {
  const int32_t dim = update.dim(), format = update.batches.format;
  const uint8_t* rows[kRows];
  float factors[kRows];
  MPE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    rows[r] = reinterpret_cast<const uint8_t*>(
        tile.shuffle(reinterpret_cast<unsigned long long>(mine.row), first + r));
    factors[r] = tile.shuffle(mine.factor, first + r);
  }
  each_chunk<kLong>(tile, dim, [&](int32_t c) {
    GradientChunk grads[kRows];
    float partial[kChunk];
    MPE_UNROLL
    for (int r = 0; r < kRows; ++r) grads[r].load(rows[r], format, c, dim);
    sum.load(c, partial);
    MPE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      grads[r].decode(format);
      for (int i = 0; i < kChunk; ++i) partial[i] = fmaf(factors[r], grads[r].x[i], partial[i]);
    }
    sum.save(c, partial);
  });
}

// Partial sum of the lookups at sorted positions [begin, end), of table t: each lane
// finds an occurrence, then all lanes add them in order, kAtOnce in flight. Lookups are numbered
// with 32 bits.
template <int kAtOnce, bool kLong>
__device__ __forceinline__ void sum_block(const Update& update, const Tile& tile, int32_t t,
                                          uint32_t begin, uint32_t end, RowFragment<kLong>& sum) {
  TableGradients gradients(update, t);
  const int32_t dim = update.dim();
  const float zeros[kChunk] = {};
  each_chunk<kLong>(tile, dim, [&](int32_t c) { sum.save(c, zeros); });
  const int lanes = 1 << tile.shift;
  for (uint32_t base = begin; base < end; base += lanes) {
    const uint32_t position = base + tile.lane < end ? base + tile.lane : base;
    const Occurrence mine = gradients.at(update.unique.positions[position]);
    const int here =
        end - base < static_cast<uint32_t>(lanes) ? static_cast<int>(end - base) : lanes;
    int j = 0;
    MPE_NO_UNROLL
    for (; j + kAtOnce <= here; j += kAtOnce) add_rows<kAtOnce>(tile, update, mine, j, sum);
    MPE_NO_UNROLL
    for (; j < here; ++j) add_rows<1>(tile, update, mine, j, sum);
  }
  // With a factor that is not finite, columns beyond the row are NaN by now.
  each_chunk<kLong>(tile, dim, [&](int32_t c) {
    float x[kChunk];
    sum.load(c, x);
    fill_beyond(x, dim - c, 0.0f);
    sum.save(c, x);
  });
}

// The gradient of a hot row with n occurrences: the sum of its blocks' sums.
template <bool kLong>
__device__ __forceinline__ void add_partials(const Update& update, const Tile& tile,
                                             const HotRows& hot, int64_t u, int64_t n,
                                             RowFragment<kLong>& total) {
  const float* sums = hot.sums + static_cast<int64_t>(hot.row_block[u]) * hot.stride;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  each_chunk<kLong>(tile, update.dim(), [&](int32_t c) {
    float x[kChunk];
    load_floats(sums + c, kChunk, x);
    for (int64_t b = 1; b < blocks; ++b) {
      float next[kChunk];
      load_floats(sums + b * hot.stride + c, kChunk, next);
      for (int i = 0; i < kChunk; ++i) x[i] = x[i] + next[i];
    }
    total.save(c, x);
  });
}

}  // namespace cuda
}  // namespace mpembed
