// The pooled and unpooled forward, the gradient of per-sample weights, and whole rows read out.
//
// A bag is served by as many lanes as its rows have chunks of eight columns, so that a warp serves
// several bags of short rows; each lane keeps kAhead rows in flight and adds them in order.
#include <algorithm>

#include "cuda/bag_sum.cuh"
#include "cuda/kernels.h"
#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {
namespace {

// Blocks that a multiprocessor is to hold: as many as there are registers for.
template <class Format, int kGrain>
constexpr int blocks_of() {
  return (kGrain == 1 ? 3 : 4) - (std::is_same<Format, AnyFormat>::value ? 1 : 0);
}

// Groups that one launch serves, with the first block of each. Kernels keep it where their
// parameters lie: a copy would be indexed in local memory.
struct Parts {
  static constexpr int kMost = 8;
  Lookup part[kMost];
  uint32_t first[kMost];  // ascending; of no block where there is no part

  __device__ __forceinline__ int32_t of(uint32_t block) const {
    int32_t p = 0;
    MPE_UNROLL
    for (int i = 1; i < kMost; ++i) p += block >= first[i] ? 1 : 0;
    return p;
  }
};

template <class Format, int kGrain>
__global__ void __launch_bounds__(kThreads, (blocks_of<Format, kGrain>()))
    bags_kernel(const __grid_constant__ Parts parts) {
  const int32_t part = parts.of(blockIdx.x);
  const Lookup& k = parts.part[part];
  const Work work(k, blockIdx.x - parts.first[part]);
  const int32_t c = work.column, dim = k.tables.dim;
  if (work.unit >= k.bags() || c >= dim) return;
  const int32_t bag = static_cast<int32_t>(work.unit), t = k.table_of(bag);
  const mpe_table& table = k.tables.table[t];
  if (table.pooling == MPE_pooling_none) return;
  const int32_t begin = static_cast<int32_t>(k.l.bag_offsets[bag]);
  const int32_t end = static_cast<int32_t>(k.l.bag_offsets[bag + 1]);
  // What is known of the bag goes into few registers before the rows come: a mean of one is a sum.
  const bool divided = table.pooling == MPE_pooling_mean && end > begin;
  const float n = divided ? static_cast<float>(end - begin) : 1.0f;
  const mpe_matrix m = k.out.of(table, t);
  float* to = m.data + (bag - t * k.l.batch_size) * m.stride + c;
  float acc[kChunk] = {};
  sum_table<Format, kGrain, kAhead>(k, table, begin, end, c, acc);
  if (n != 1.0f) {
    for (int j = 0; j < kChunk; ++j) acc[j] /= n;
  }
  store_floats(to, dim - c, acc);
}

// Tables without pooling: every lookup is a bag of one.
template <int kGrain>
__global__ void lookups_kernel(Lookup k) {
  const Work work(k, blockIdx.x);
  const int64_t p = work.unit;
  const int32_t c = work.column, dim = k.tables.dim;
  if (p >= k.l.bag_offsets[k.bags()] || c >= dim) return;
  const int32_t t = k.table_of(k.l.bags[p]);
  const mpe_table& table = k.tables.table[t];
  if (table.pooling != MPE_pooling_none) return;
  float acc[kChunk] = {};
  const int32_t first = static_cast<int32_t>(p);
  sum_table<AnyFormat, kGrain, 1>(k, table, first, first + 1, c, acc);
  const mpe_matrix m = k.out.of(table, t);
  store_floats(m.data + (p - k.l.bag_offsets[t * k.l.batch_size]) * m.stride + c, dim - c, acc);
}

// A column of a stored row: made once a row, then called with columns.
template <class F>
class RowReader {
 public:
  __device__ RowReader(const uint8_t* row, int64_t dim) : row_(row), header_(F::header(row, dim)) {}
  __device__ float operator()(int64_t c) const { return F::value(row_, header_, c); }

 private:
  const uint8_t* row_;
  typename F::RowHeader header_;
};

// The lane tree's fold of a tile whose lanes have a column in so many, and zero where they have
// none; every lane gets the result.
__device__ float fold(const Tile& tile, float v) {
  if (tile.shift < 5) v = v + 0.0f;
  for (int s = 1 << tile.shift >> 1; s > 0; s >>= 1) v = v + __shfl_xor_sync(tile.mask, v, s);
  return v;
}

// This lane's part of the dot product of a gradient with a row as it is now.
__device__ float dot(const Lookup& k, const Tile& tile, const mpe_table& table, int64_t p,
                     const float* grad) {
  const int32_t dim = k.tables.dim, lanes = 1 << tile.shift;
  float lane = 0.0f;
  const auto add = [&](auto row) {
    for (int32_t c = tile.lane; c < dim; c += lanes) lane = fmaf(grad[c], row(c), lane);
  };
  if (const float* cached = k.cache_row(p)) {
    add([=](int64_t c) { return cached[c]; });
    return lane;
  }
  const int64_t number = static_cast<int64_t>(k.l.keys[p]) - table.base;
  with_format(table.precision, [&](auto f) {
    using F = decltype(f);
    add(RowReader<F>(table.rows + number * F::row_bytes(dim), dim));
  });
  return lane;
}

__global__ void weight_grad_kernel(Lookup k, int32_t shift, float* out) {
  const Tile tile(shift);
  const int64_t p = tile.index();
  if (p >= k.l.bag_offsets[k.bags()]) return;
  const int64_t bag = k.l.bags[p], t = k.table_of(bag);
  const mpe_table& table = k.tables.table[t];
  const int64_t first = k.l.bag_offsets[t * k.l.batch_size];
  float result = 0.0f;
  if (k.l.keys[p] != MPE_DROPPED) {
    const mpe_matrix m = k.out.of(table, static_cast<int32_t>(t));
    const int64_t line = table.pooling == MPE_pooling_none ? p - first : bag - t * k.l.batch_size;
    result = fold(tile, dot(k, tile, table, p, m.data + line * m.stride));
    if (table.pooling == MPE_pooling_mean) {
      result /= static_cast<float>(k.l.bag_offsets[bag + 1] - k.l.bag_offsets[bag]);
    }
  }
  if (tile.lane == 0) out[k.l.origins[t] + (p - first)] = result;
}

__global__ void read_rows_kernel(Tables tables, mpe_cache cache, int32_t shift,
                                 const uint64_t* keys, int64_t n, float* values) {
  const Tile tile(shift);
  const int64_t i = tile.index();
  const int32_t dim = tables.dim;
  if (i >= n) return;
  const uint64_t key = keys[i];
  const mpe_table& table = tables.table[tables.find(key)];
  const int64_t slot =
      cache.tags == nullptr ? -1 : probe(cache.tags, cache.num_sets, cache.ways, key);
  each_chunk<true>(tile, dim, [&](int32_t c) {
    float x[kChunk];
    if (slot >= 0) {
      load_floats(cache.rows + slot * dim + c, dim - c, x);
    } else {
      read_table_chunk(tables, table, static_cast<int64_t>(key) - table.base, c, x);
    }
    store_floats(values + i * dim + c, dim - c, x);
  });
}

Lookup make_lookup(const mpe_group& g, const mpe_lookups& l, const int32_t* slots,
                   const mpe_outputs& out) {
  const int32_t shift = tile_shift(g.dim);
  const int32_t parts = static_cast<int32_t>(ceil_div(g.dim, kChunk << shift));
  const float* cached = g.cache != nullptr ? g.cache->rows : nullptr;
  const bool slotted = slots != nullptr, weighted = l.weights != nullptr;
  return Lookup{Tables(g), l, cached, slots, Outputs{out}, slotted, weighted, shift, parts};
}

// The pooled tables of several groups, gathered for launches of one kernel.
class Launches {
 public:
  explicit Launches(void* stream) : stream_(stream) {}

  mpe_status add(const mpe_group& g, const Lookup& k) {
    const int64_t lanes = static_cast<int64_t>(k.parts) << k.shift;
    const int64_t blocks = ceil_div(lanes * g.num_tables * k.l.batch_size, kThreads);
    const int32_t format = format_of(g);
    if (format == kNone || blocks == 0) return MPE_OK;
    if (count_ == Parts::kMost || blocks_ + blocks > INT32_MAX) MPE_TRY(run());
    format_ = count_ == 0 || format == format_ ? format : kSeveral;
    grain_ = count_ == 0 || k.tables.grain < grain_ ? k.tables.grain : grain_;
    parts_.part[count_] = k;
    parts_.first[count_] = static_cast<uint32_t>(blocks_);
    blocks_ += blocks;
    ++count_;
    return MPE_OK;
  }
  mpe_status run() {
    if (count_ == 0) return MPE_OK;
    for (int32_t i = count_; i < Parts::kMost; ++i) parts_.first[i] = UINT32_MAX;
    const mpe_status status = grain_ == kChunk       ? launch_grain<kChunk>()
                              : grain_ == kHalfChunk ? launch_grain<kHalfChunk>()
                                                     : launch_grain<1>();
    count_ = 0;
    blocks_ = 0;
    return status;
  }

 private:
  static constexpr int32_t kNone = -1, kSeveral = -2;

  // The format of all pooled tables.
  static int32_t format_of(const mpe_group& g) {
    int32_t format = kNone;
    for (int32_t t = 0; t < g.num_tables; ++t) {
      const mpe_table& table = g.tables[t];
      if (table.pooling == MPE_pooling_none || table.precision == format) continue;
      if (format != kNone) return kSeveral;
      format = table.precision;
    }
    return format;
  }
  template <int kGrain>
  mpe_status launch_grain() const {
    if (format_ == kSeveral) return launch_kernel(bags_kernel<AnyFormat, kGrain>);
    return with_format(format_, [&](auto f) {
      return launch_kernel(bags_kernel<decltype(f), kGrain>);
    });
  }
  mpe_status launch_kernel(void (*kernel)(Parts)) const {
    return launch_blocks("lookup", stream_, blocks_, kThreads, kernel, parts_);
  }

  void* stream_;
  Parts parts_{};
  int64_t blocks_ = 0;
  int32_t count_ = 0, format_ = kNone, grain_ = kChunk;
};

mpe_status launch_unpooled(const mpe_group& g, const Lookup& k, void* stream) {
  const auto unpooled = [](const mpe_table& t) { return t.pooling == MPE_pooling_none; };
  if (std::none_of(g.tables, g.tables + g.num_tables, unpooled)) return MPE_OK;
  const int64_t threads = (static_cast<int64_t>(k.parts) << k.shift) * k.l.n;
  const auto kernel = k.tables.grain == kChunk       ? lookups_kernel<kChunk>
                      : k.tables.grain == kHalfChunk ? lookups_kernel<kHalfChunk>
                                                     : lookups_kernel<1>;
  return launch("lookup", stream, threads, kernel, k);
}

}  // namespace

// One launch serves all groups, in the kernel of the smallest grain: halves of chunks cost aligned
// rows little. Rows that are not aligned at all have a launch of their own, for they are loaded
// column by column, and in one kernel with them so would all others be.
mpe_status lookup(const mpe_lookup_args* parts, int32_t n, void* stream) {
  Launches aligned(stream), others(stream);
  for (int32_t i = 0; i < n; ++i) {
    const mpe_lookup_args& p = parts[i];
    const Lookup k = make_lookup(*p.group, *p.lookups, p.slots, *p.outputs);
    MPE_TRY((k.tables.grain > 1 ? aligned : others).add(*p.group, k));
    MPE_TRY(launch_unpooled(*p.group, k, stream));
  }
  MPE_TRY(aligned.run());
  return others.run();
}

mpe_status weight_grad(const mpe_group* g, const mpe_lookups* l, const int32_t* slots,
                       const mpe_outputs* grad, float* out, void* stream) {
  const Lookup k = make_lookup(*g, *l, slots, *grad);
  const int32_t shift = tile_shift(g->dim, 1);
  return launch("weight gradient", stream, l->n << shift, weight_grad_kernel, k, shift, out);
}

mpe_status read_rows(const mpe_group* g, const uint64_t* keys, int64_t n, float* values,
                     void* stream) {
  const mpe_cache cache = g->cache != nullptr ? *g->cache : mpe_cache{};
  const int32_t shift = tile_shift(g->dim);
  return launch("rows", stream, n << shift, read_rows_kernel, Tables(*g), cache, shift, keys, n,
                values);
}

}  // namespace cuda
}  // namespace mpembed
