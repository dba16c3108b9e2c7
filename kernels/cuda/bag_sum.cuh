// A lane's columns of a bag: rows added in order, some of them in flight at a time.
#pragma once

#include "cuda/chunk.cuh"

namespace mpembed {
namespace cuda {

constexpr int kAhead = 2;  // rows in flight: more take registers, and warps with them

struct Lookup {
  Tables tables;
  mpe_lookups l;
  const float* cached;   // cache rows, or NULL
  const int32_t* slots;  // one a lookup, or NULL
  Outputs out;
  bool slotted, weighted;  // whether there are slots and weights
  int32_t shift;           // so many lanes, as a power of two, have a bag or row
  int32_t parts;           // how often that many lanes make a row

  __device__ const float* cache_row(int64_t p) const {
    if (slots == nullptr || slots[p] < 0) return nullptr;
    return cached + static_cast<int64_t>(slots[p]) * tables.dim;
  }
  __device__ int64_t bags() const { return tables.count * l.batch_size; }
  // Bags are numbered with 32 bits.
  __device__ int32_t table_of(int64_t bag) const {
    return static_cast<int32_t>(static_cast<uint32_t>(bag) / static_cast<uint32_t>(l.batch_size));
  }
};

// What one lane does: a part of a bag's columns.
struct Work {
  int64_t unit;
  int32_t column;

  // `block`: counted from the first one that works on `k`.
  __device__ Work(const Lookup& k, uint32_t block) {
    const int64_t i = static_cast<int64_t>(block) * blockDim.x + threadIdx.x, group = i >> k.shift;
    const int64_t part = k.parts == 1 ? 0 : group % k.parts;
    unit = k.parts == 1 ? group : group / k.parts;
    column = static_cast<int32_t>((part << k.shift) + (i & ((1 << k.shift) - 1))) * kChunk;
  }
};

// Where a lookup's row lies: fetched a round before the row is.
struct Place {
  uint64_t key;
  int32_t slot;

  __device__ __forceinline__ void fetch(const Lookup& k, uint32_t p, bool wanted) {
    key = MPE_DROPPED;
    slot = -1;
    if (!wanted) return;
    key = k.l.keys[p];
    if (k.slotted) slot = k.slots[p];
  }
  __device__ __forceinline__ bool dropped() const { return static_cast<int64_t>(key) < 0; }
};

// A lane's columns of a table's rows and of the cache's.
template <class F, int kGrain>
struct Source {
  using Stored = Chunk<F, kGrain>;
  using Cached = Chunk<Fp32, kGrain>;
  const uint8_t* rows;  // of the key 0
  const float* cached;
  int32_t dim, column;

  __device__ __forceinline__ Source(const Lookup& k, const mpe_table& table, int32_t c)
      : rows(table.rows - table.base * F::row_bytes(k.tables.dim)),
        cached(k.cached),
        dim(k.tables.dim),
        column(c) {}
  __device__ __forceinline__ void load(uint64_t key, uint32_t* raw) const {
    const uint8_t* row = rows + static_cast<int64_t>(key) * F::row_bytes(dim);
    Stored::load_header(row, dim, raw + Stored::kRaw);
    Stored::load(row, dim, column, raw);
  }
  __device__ __forceinline__ void load_cached(int32_t slot, uint32_t* raw) const {
    const float* row = cached + static_cast<int64_t>(slot) * dim;
    Cached::load(reinterpret_cast<const uint8_t*>(row), dim, column, raw);
  }
};

// One row in flight: read where it lies, in the table or in the cache; decoded when it is added,
// so that no load waits for another row.
template <class F, int kGrain>
class Pending {
 public:
  __device__ __forceinline__ void load(const Source<F, kGrain>& source, const Place& place) {
    kind_ = place.dropped() ? kNone : place.slot >= 0 ? kCached : kStored;
    if (kind_ == kStored) source.load(place.key, raw_);
    if (kind_ == kCached) source.load_cached(place.slot, raw_);
  }
  __device__ __forceinline__ void add(float weight, float* acc) const {
    if (kind_ == kStored) {
      const typename F::RowHeader header = Stored::header(raw_ + Stored::kRaw);
      uint32_t words[Stored::kWords];
      Stored::join(raw_, words);
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        acc[j] = fmaf(weight, Stored::value(words, header, j), acc[j]);
      }
    } else if (kind_ == kCached) {
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) acc[j] = fmaf(weight, bits_float(raw_[j]), acc[j]);
    }
  }

 private:
  enum Kind { kNone, kStored, kCached };
  // A cached row takes eight words; codes and their header have room there.
  using Stored = Chunk<F, kGrain>;
  static constexpr int kWords = max_of(kChunk, Stored::kRaw + Stored::kRawHeader);
  Kind kind_;
  uint32_t raw_[kWords];
};

// acc = sum of w * row over lookups [begin, end), in order. Lookups are numbered with 32 bits.
template <class F, int kGrain, int kRows>
__device__ __forceinline__ void sum_rows(const Lookup& k, const mpe_table& table, int32_t begin,
                                         int32_t end, int32_t c, float* acc) {
  const Source<F, kGrain> source(k, table, c);
  Place places[kRows];
  uint32_t p = static_cast<uint32_t>(begin);
  int32_t left = end - begin;
  MPE_UNROLL
  for (int i = 0; i < kRows; ++i) places[i].fetch(k, p + i, i < left);
  for (; left > 0; left -= kRows, p += kRows) {
    Pending<F, kGrain> rows[kRows];
    float weights[kRows];
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      rows[i].load(source, places[i]);
      weights[i] = k.weighted && i < left ? k.l.weights[p + i] : 1.0f;
    }
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) places[i].fetch(k, p + kRows + i, kRows + i < left);
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) rows[i].add(weights[i], acc);
  }
}

// Any format, table by table, for kernels of a group that has several.
struct AnyFormat {};

template <class Format, int kGrain, int kRows>
__device__ __forceinline__ void sum_table(const Lookup& k, const mpe_table& table, int32_t begin,
                                          int32_t end, int32_t c, float* acc) {
  if constexpr (std::is_same<Format, AnyFormat>::value) {
    with_format(table.precision, [&](auto f) {
      sum_rows<decltype(f), kGrain, kRows>(k, table, begin, end, c, acc);
    });
  } else {
    sum_rows<Format, kGrain, kRows>(k, table, begin, end, c, acc);
  }
}

}  // namespace cuda
}  // namespace mpembed
