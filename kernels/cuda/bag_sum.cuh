// A lane's columns of a bag: rows added in order, some of them in flight at a time.
#pragma once

#include "cuda/outputs.cuh"

namespace mpembed {
namespace cuda {

constexpr int kRowsInFlight = 2;  // of a lane; more take registers and so leave fewer warps

struct Lookup {
  Tables tables;
  mpe_lookups lookups;
  const float* cached;   // the cache's rows, or NULL
  const int32_t* slots;  // one per lookup, or NULL
  mpe_outputs out;
  bool slotted, weighted;  // whether there are slots and weights
  int32_t shift;           // 1 << shift lanes are a tile
  int32_t tiles;           // that share a bag's or lookup's row
  int32_t run;             // bags, one after the other, that a tile sums
  int32_t runs;            // of a table

  __device__ const float* cache_row(int64_t p) const {
    if (slots == nullptr || slots[p] < 0) return nullptr;
    return cached + slots[p] * int64_t{tables.slot_floats()};
  }
  __device__ int64_t bags() const { return tables.count * lookups.batch_size; }
  // Bags are numbered with 32 bits.
  __device__ int32_t table_of(int64_t bag) const {
    return static_cast<int32_t>(static_cast<uint32_t>(bag) /
                                static_cast<uint32_t>(lookups.batch_size));
  }
};

// What one lane computes: eight columns of a bag or lookup.
struct LaneTask {
  int64_t item;  // the number of the bag or lookup
  int32_t column;

  // `block` counts from the first that works on `lookup`.
  __device__ LaneTask(const Lookup& lookup, uint32_t block) {
    const int64_t i = static_cast<int64_t>(block) * blockDim.x + threadIdx.x;
    const int64_t index = i >> lookup.shift;  // of the tile
    const int64_t tile = lookup.tiles == 1 ? 0 : index % lookup.tiles;
    item = lookup.tiles == 1 ? index : index / lookup.tiles;
    column =
        static_cast<int32_t>((tile << lookup.shift) + (i & ((1 << lookup.shift) - 1))) * kChunk;
  }
};

// Where a lookup's row lies; fetched one round before the row.
struct RowLocation {
  uint64_t key;
  int32_t slot;

  __device__ __forceinline__ void fetch(const Lookup& lookup, uint32_t p, bool wanted) {
    key = MPE_DROPPED;
    slot = -1;
    if (!wanted) return;
    key = lookup.lookups.keys[p];
    if (lookup.slotted) slot = lookup.slots[p];
  }
  __device__ __forceinline__ bool dropped() const { return static_cast<int64_t>(key) < 0; }
};

// A lane's columns of a table's rows and of the cache's.
template <class Format, int kAlignment>
struct ColumnSource {
  using Stored = Chunk<Format, kAlignment>;
  using Cached = Chunk<Fp32, kAlignment>;
  const uint8_t* rows;   // the row of key 0, from the lane's first column on
  const uint8_t* slots;  // slot 0, likewise
  int64_t stride;        // bytes between rows
  int32_t slot_stride;   // the same between slots
  int32_t header;        // from there to a row's header
  int32_t columns;       // from there to a row's end

  __device__ __forceinline__ ColumnSource(const Lookup& lookup, const mpe_table& table, int32_t c)
      : rows(table.rows - table.base * table.row_stride + Stored::offset(c)),
        slots(reinterpret_cast<const uint8_t*>(lookup.cached + c)),
        stride(table.row_stride),
        slot_stride(lookup.tables.slot_floats() * int32_t{sizeof(float)}),
        header(static_cast<int32_t>(Format::code_bytes(lookup.tables.dim)) - Stored::offset(c)),
        columns(lookup.tables.dim - c) {}
  __device__ __forceinline__ void load(uint64_t key, uint32_t* raw) const {
    const uint8_t* row = rows + static_cast<int64_t>(key) * stride;
    Stored::load_header(row + header, raw + Stored::kRaw);
    Stored::load(row, columns, raw);
  }
  __device__ __forceinline__ void load_cached(int32_t slot, uint32_t* raw) const {
    Cached::load(slots + slot * int64_t{slot_stride}, columns, raw);
  }
};

// A row in flight: loaded from the table or the cache, decoded only when it is added, so that no
// load waits for another row.
template <class Format, int kAlignment>
class PendingRow {
 public:
  __device__ __forceinline__ void load(const ColumnSource<Format, kAlignment>& source,
                                       const RowLocation& location) {
    kind_ = location.dropped() ? kNone : location.slot >= 0 ? kCached : kStored;
    if (kind_ == kStored) source.load(location.key, raw_);
    if (kind_ == kCached) source.load_cached(location.slot, raw_);
  }
  __device__ __forceinline__ void add(float weight, float* acc) const {
    if (kind_ == kStored) {
      const typename Format::RowHeader header = Stored::header(raw_ + Stored::kRaw);
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
  // A cached row takes eight words; codes and their header fit into them.
  using Stored = Chunk<Format, kAlignment>;
  static constexpr int kWords = max_of(kChunk, Stored::kRaw + Stored::kRawHeader);
  Kind kind_;
  uint32_t raw_[kWords];
};

// acc += weight * row of lookup p. Lookups are numbered with 32 bits.
template <class Format, int kAlignment>
__device__ __forceinline__ void add_lookup(const Lookup& lookup, const mpe_table& table, uint32_t p,
                                           int32_t c, float* acc) {
  RowLocation location;
  PendingRow<Format, kAlignment> row;
  location.fetch(lookup, p, true);
  row.load(ColumnSource<Format, kAlignment>(lookup, table, c), location);
  row.add(lookup.weighted ? lookup.lookups.weights[p] : 1.0f, acc);
}

// Bags of a table that a tile sums one after the other: the first of a bag's rows are loaded while
// those of the one before are added. Where an output lies is found anew for each, which leaves more
// registers.
class BagRun {
 public:
  // Bags [first, first + count) of table t, count > 0.
  __device__ __forceinline__ BagRun(const Lookup* lookups, int32_t group, int32_t t, int32_t first,
                                    int32_t count)
      : lookups_(lookups), group_(group), t_(t), bag_(first), left_(count) {
    begin_ = end_of(lookups[group], first - 1);
    end_ = end_of(lookups[group], first);
    last_ = static_cast<uint32_t>(end_of(lookups[group], first + count - 1));
  }

  __device__ __forceinline__ int32_t begin() const { return begin_; }
  // Where the lookups of the last bag end.
  __device__ __forceinline__ uint32_t last() const { return last_; }
  __device__ __forceinline__ bool done() const { return left_ == 0; }
  // Whether a lookup comes after the open bag's.
  __device__ __forceinline__ bool ends_before(uint32_t p) const {
    return static_cast<uint32_t>(end_) <= p;
  }

  // Writes the open bag's sum of a row's last `columns`, and opens the next bag.
  __device__ __forceinline__ void close(int32_t columns, float* acc) {
    const Lookup& lookup = lookups_[opaque(group_)];
    const int32_t t = opaque(t_);
    const mpe_table& table = lookup.tables.table[t];
    const int32_t n = end_ - begin_;
    if (n > 1 && table.pooling == MPE_pooling_mean) {
      for (int j = 0; j < kChunk; ++j) acc[j] /= static_cast<float>(n);
    }
    uint8_t* to = OutputRows(lookup.out, table, t).at(bag_, lookup.tables.dim - columns);
    store_outputs(to, lookup.out.format, columns, acc);
    for (int j = 0; j < kChunk; ++j) acc[j] = 0.0f;
    begin_ = end_;
    ++bag_;
    if (--left_ > 0) end_ = end_of(lookup, bag_);
  }

 private:
  // Lookups are numbered with 32 bits.
  __device__ __forceinline__ int32_t end_of(const Lookup& lookup, int32_t bag) const {
    const int64_t first = t_ * lookup.lookups.batch_size;
    return static_cast<int32_t>(lookup.lookups.bag_offsets[first + bag + 1]);
  }

  const Lookup* lookups_;
  int32_t group_, t_, bag_, left_, begin_, end_;
  uint32_t last_;
};

template <class Format, int kAlignment>
__device__ __forceinline__ void sum_bags(const Lookup& lookup, const mpe_table& table, BagRun bags,
                                         int32_t c) {
  constexpr int kRows = kRowsInFlight;
  const ColumnSource<Format, kAlignment> source(lookup, table, c);
  RowLocation locations[kRows];
  float acc[kChunk] = {};
  uint32_t p = static_cast<uint32_t>(bags.begin());
  MPE_UNROLL
  for (int i = 0; i < kRows; ++i) locations[i].fetch(lookup, p + i, p + i < bags.last());
  for (;; p += kRows) {
    PendingRow<Format, kAlignment> rows[kRows];
    float weights[kRows];
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      rows[i].load(source, locations[i]);
      weights[i] = lookup.weighted && p + i < bags.last() ? lookup.lookups.weights[p + i] : 1.0f;
    }
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      locations[i].fetch(lookup, p + kRows + i, p + kRows + i < bags.last());
    }
    MPE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      MPE_NO_UNROLL
      while (bags.ends_before(p + i)) {
        bags.close(source.columns, acc);
        if (bags.done()) return;
      }
      rows[i].add(weights[i], acc);
    }
  }
}

// For kernels that serve several formats: each table's own is looked up at run time.
struct AnyFormat {};

template <class Format, int kAlignment>
__device__ __forceinline__ void sum_table(const Lookup& lookup, const mpe_table& table, BagRun bags,
                                          int32_t c) {
  if constexpr (std::is_same<Format, AnyFormat>::value) {
    with_format(table.precision, [&](auto format) {
      sum_bags<decltype(format), kAlignment>(lookup, table, bags, c);
    });
  } else {
    sum_bags<Format, kAlignment>(lookup, table, bags, c);
  }
}

}  // namespace cuda
}  // namespace mpembed
