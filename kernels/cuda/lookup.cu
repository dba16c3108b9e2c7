// The pooled and unpooled forward, the gradient of per-sample weights, and whole rows read out.
//
// A bag is served by as many lanes as its rows have chunks of eight columns, so that a warp serves
// several bags of short rows; each lane keeps kAhead rows in flight and adds them in order.
#include "cuda/chunk.cuh"
#include "cuda/kernels.h"
#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {
namespace {

constexpr int kAhead = 4;

struct Lookup {
  Tables tables;
  mpe_lookups l;
  const float* cached;   // cache rows, or NULL
  const int32_t* slots;  // one a lookup, or NULL
  Outputs out;
  int32_t lanes;  // of a bag or row: a power of two
  int32_t parts;  // how often that many lanes make a row

  __device__ const float* cache_row(int64_t p) const {
    if (slots == nullptr || slots[p] < 0) return nullptr;
    return cached + static_cast<int64_t>(slots[p]) * tables.dim;
  }
};

// What one lane does: a part of a bag's columns.
struct Work {
  int64_t unit, column;

  __device__ explicit Work(const Lookup& k) {
    const int64_t i = thread_index(), group = i / k.lanes;
    unit = group / k.parts;
    column = (group % k.parts * k.lanes + i % k.lanes) * kChunk;
  }
};

// One row in flight: read where it lies, in the table or in the cache, added later.
template <class F, bool kAligned>
class Pending {
 public:
  __device__ __forceinline__ void load(const Lookup& k, const mpe_table& table, int64_t p,
                                       int64_t c) {
    const uint64_t key = k.l.keys[p];
    kind_ = kNone;
    if (key == MPE_DROPPED) return;
    weight_ = k.l.weights != nullptr ? k.l.weights[p] : 1.0f;
    if (const float* cached = k.cache_row(p)) {
      kind_ = kCached;
      const uint8_t* row = reinterpret_cast<const uint8_t*>(cached);
      Chunk<Fp32>::load<kAligned>(row, k.tables.dim, c, words_);
    } else {
      kind_ = kStored;
      const int64_t number = static_cast<int64_t>(key) - table.base, dim = k.tables.dim;
      const uint8_t* row = table.rows + number * F::row_bytes(dim);
      header_ = F::header(row, dim);
      Chunk<F>::template load<kAligned>(row, dim, c, words_);
    }
  }
  __device__ __forceinline__ void add(float* acc) const {
    if (kind_ == kStored) {
      for (int j = 0; j < kChunk; ++j) {
        acc[j] = fmaf(weight_, Chunk<F>::value(words_, header_, j), acc[j]);
      }
    } else if (kind_ == kCached) {
      for (int j = 0; j < kChunk; ++j) acc[j] = fmaf(weight_, bits_float(words_[j]), acc[j]);
    }
  }

 private:
  enum Kind { kNone, kStored, kCached };
  Kind kind_ = kNone;
  float weight_ = 0.0f;
  typename F::RowHeader header_{};
  uint32_t words_[Chunk<Fp32>::kWords] = {};
};

// acc = sum of w * row over lookups [begin, end), in order.
template <class F, bool kAligned>
__device__ void sum_rows(const Lookup& k, const mpe_table& table, int64_t begin, int64_t end,
                         int64_t c, float* acc) {
  int64_t p = begin;
  for (; p + kAhead <= end; p += kAhead) {
    Pending<F, kAligned> rows[kAhead];
    MPE_UNROLL
    for (int i = 0; i < kAhead; ++i) rows[i].load(k, table, p + i, c);
    MPE_UNROLL
    for (int i = 0; i < kAhead; ++i) rows[i].add(acc);
  }
  for (; p < end; ++p) {
    Pending<F, kAligned> row;
    row.load(k, table, p, c);
    row.add(acc);
  }
}

__device__ void store_chunk(float* target, const float* acc, int64_t columns) {
  if (columns >= kChunk && reinterpret_cast<uintptr_t>(target) % 16 == 0) {
    float4* wide = reinterpret_cast<float4*>(target);
    wide[0] = make_float4(acc[0], acc[1], acc[2], acc[3]);
    wide[1] = make_float4(acc[4], acc[5], acc[6], acc[7]);
    return;
  }
  for (int j = 0; j < kChunk; ++j) {
    if (j < columns) target[j] = acc[j];
  }
}

template <bool kAligned>
__global__ void bags_kernel(Lookup k) {
  const Work work(k);
  const int64_t bag = work.unit, c = work.column, dim = k.tables.dim;
  if (bag >= k.tables.count * k.l.batch_size || c >= dim) return;
  const int32_t t = static_cast<int32_t>(bag / k.l.batch_size);
  const mpe_table& table = k.tables.table[t];
  if (table.pooling == MPE_pooling_none) return;
  const int64_t begin = k.l.bag_offsets[bag], end = k.l.bag_offsets[bag + 1];
  float acc[kChunk] = {};
  with_format(table.precision, [&](auto f) {
    sum_rows<typename decltype(f)::type, kAligned>(k, table, begin, end, c, acc);
  });
  if (table.pooling == MPE_pooling_mean && end > begin) {
    const float n = static_cast<float>(end - begin);
    for (int j = 0; j < kChunk; ++j) acc[j] /= n;
  }
  const mpe_matrix m = k.out.of(table, t);
  store_chunk(m.data + bag % k.l.batch_size * m.stride + c, acc, dim - c);
}

// Tables without pooling: every lookup is a bag of one.
template <bool kAligned>
__global__ void lookups_kernel(Lookup k) {
  const Work work(k);
  const int64_t p = work.unit, c = work.column, dim = k.tables.dim;
  if (p >= k.l.bag_offsets[k.tables.count * k.l.batch_size] || c >= dim) return;
  const int32_t t = static_cast<int32_t>(k.l.bags[p] / k.l.batch_size);
  const mpe_table& table = k.tables.table[t];
  if (table.pooling != MPE_pooling_none) return;
  float acc[kChunk] = {};
  with_format(table.precision, [&](auto f) {
    sum_rows<typename decltype(f)::type, kAligned>(k, table, p, p + 1, c, acc);
  });
  const mpe_matrix m = k.out.of(table, t);
  store_chunk(m.data + (p - k.l.bag_offsets[t * k.l.batch_size]) * m.stride + c, acc, dim - c);
}

// Calls visit with something that reads column c of a row as it is now.
template <class Visit>
__device__ void with_row(const Tables& tables, const mpe_table& table, uint64_t key,
                         const float* cached, Visit visit) {
  if (cached != nullptr) {
    visit([=](int64_t c) { return cached[c]; });
    return;
  }
  const int64_t number = static_cast<int64_t>(key) - table.base, dim = tables.dim;
  with_format(table.precision, [&](auto f) {
    using F = typename decltype(f)::type;
    visit(RowReader<F>(table.rows + number * F::row_bytes(dim), dim));
  });
}

template <int W>
__global__ void weight_grad_kernel(Lookup k, float* out) {
  const Tile<W> tile;
  const int64_t p = Tile<W>::index(), dim = k.tables.dim;
  if (p >= k.l.bag_offsets[k.tables.count * k.l.batch_size]) return;
  const int64_t bag = k.l.bags[p], t = bag / k.l.batch_size;
  const mpe_table& table = k.tables.table[t];
  const int64_t first = k.l.bag_offsets[t * k.l.batch_size];
  float result = 0.0f;
  if (k.l.keys[p] != MPE_DROPPED) {
    const mpe_matrix m = k.out.of(table, static_cast<int32_t>(t));
    const int64_t line = table.pooling == MPE_pooling_none ? p - first : bag % k.l.batch_size;
    const float* grad = m.data + line * m.stride;
    float lane = 0.0f;
    with_row(k.tables, table, k.l.keys[p], k.cache_row(p), [&](auto row) {
      for (int64_t c = tile.lane; c < dim; c += W) lane = fmaf(grad[c], row(c), lane);
    });
    result = tile.fold(lane);
    if (table.pooling == MPE_pooling_mean) {
      result /= static_cast<float>(k.l.bag_offsets[bag + 1] - k.l.bag_offsets[bag]);
    }
  }
  if (tile.lane == 0) out[k.l.origins[t] + (p - first)] = result;
}

template <int W>
__global__ void read_rows_kernel(Tables tables, mpe_cache cache, const uint64_t* keys, int64_t n,
                                 float* values) {
  const Tile<W> tile;
  const int64_t i = Tile<W>::index();
  if (i >= n) return;
  const uint64_t key = keys[i];
  const mpe_table& table = tables.table[tables.find(key)];
  const int64_t slot =
      cache.tags == nullptr ? -1 : probe(cache.tags, cache.num_sets, cache.ways, key);
  const float* cached = slot >= 0 ? cache.rows + slot * tables.dim : nullptr;
  with_row(tables, table, key, cached, [&](auto row) {
    for (int64_t c = tile.lane; c < tables.dim; c += W) values[i * tables.dim + c] = row(c);
  });
}

Lookup make_lookup(const mpe_group& g, const mpe_lookups& l, const int32_t* slots,
                   const mpe_outputs& out) {
  int32_t lanes = 1;
  while (lanes < kWarp && lanes * kChunk < g.dim) lanes *= 2;
  const int32_t parts = static_cast<int32_t>(ceil_div(g.dim, lanes * kChunk));
  const float* cached = g.cache != nullptr ? g.cache->rows : nullptr;
  return Lookup{Tables(g), l, cached, slots, Outputs{out}, lanes, parts};
}

}  // namespace

mpe_status lookup(const mpe_group* g, const mpe_lookups* l, const int32_t* slots,
                  const mpe_outputs* out, void* stream) {
  const Lookup k = make_lookup(*g, *l, slots, *out);
  bool pooled = false, unpooled = false;
  for (int32_t t = 0; t < g->num_tables; ++t) {
    (g->tables[t].pooling == MPE_pooling_none ? unpooled : pooled) = true;
  }
  const bool aligned = aligned_chunks(*g);
  const int64_t threads = static_cast<int64_t>(k.lanes) * k.parts;
  if (pooled) {
    MPE_TRY(launch("lookup", stream, threads * g->num_tables * l->batch_size,
                   aligned ? bags_kernel<true> : bags_kernel<false>, k));
  }
  if (!unpooled) return MPE_OK;
  return launch("lookup", stream, threads * l->n,
                aligned ? lookups_kernel<true> : lookups_kernel<false>, k);
}

mpe_status weight_grad(const mpe_group* g, const mpe_lookups* l, const int32_t* slots,
                       const mpe_outputs* grad, float* out, void* stream) {
  const Lookup k = make_lookup(*g, *l, slots, *grad);
  return with_width(g->dim, [&](auto width) {
    constexpr int W = decltype(width)::value;
    return launch("weight gradient", stream, l->n * W, weight_grad_kernel<W>, k, out);
  });
}

mpe_status read_rows(const mpe_group* g, const uint64_t* keys, int64_t n, float* values,
                     void* stream) {
  const mpe_cache cache = g->cache != nullptr ? *g->cache : mpe_cache{};
  return with_width(g->dim, [&](auto width) {
    constexpr int W = decltype(width)::value;
    return launch("rows", stream, n * W, read_rows_kernel<W>, Tables(*g), cache, keys, n, values);
  });
}

}  // namespace cuda
}  // namespace mpembed
