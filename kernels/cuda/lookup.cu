// The pooled and unpooled forward, the gradient of per-sample weights, and whole rows read out.
//
// A bag is served by as many lanes as its rows have chunks of eight columns, so that a warp serves
// several bags of short rows; each lane keeps kRowsInFlight rows in flight and adds them in order.
#include <algorithm>

#include "cuda/bag_sum.cuh"
#include "cuda/kernels.h"
#include "cuda/outputs.cuh"
#include "cuda/row.cuh"

namespace mpembed {
namespace cuda {
namespace {

constexpr int kBagThreads = 128;  // fewer registers are left over than by larger blocks

// Blocks that a multiprocessor should hold: as many as its registers allow. FP32 rows, and rows
// that are loaded byte by byte, take more of them.
template <class Format, int kAlignment>
constexpr int bag_blocks() {
  if constexpr (kAlignment == 1 || std::is_same<Format, AnyFormat>::value) {
    return kAlignment == 1 ? 5 : 6;
  } else {
    constexpr bool kBytes = 8 % Format::kBitsPerCode != 0 && Chunk<Format, kAlignment>::kPiece == 1;
    return kBytes || Format::kBitsPerCode == 32 ? 6 : 7;
  }
}

// The groups that one launch serves, and the first block of each. Kernels read it from their
// parameters in place: a copy would be indexed in local memory.
struct GroupLookups {
  static constexpr int kMaxGroups = 8;
  Lookup lookup[kMaxGroups];
  uint32_t first_block[kMaxGroups];  // ascending; UINT32_MAX where there is no group

  __device__ __forceinline__ int32_t index_of(uint32_t block) const {
    int32_t group = 0;
    MPE_UNROLL
    for (int i = 1; i < kMaxGroups; ++i) group += block >= first_block[i] ? 1 : 0;
    return group;
  }
};

template <class Format, int kAlignment>
__global__ void __launch_bounds__(kBagThreads, (bag_blocks<Format, kAlignment>()))
    bags_kernel(const __grid_constant__ GroupLookups groups) {
  const int32_t group = groups.index_of(blockIdx.x);
  const Lookup& lookup = groups.lookup[group];
  const LaneTask task(lookup, blockIdx.x - groups.first_block[group]);
  const int32_t c = task.column, dim = lookup.tables.dim;
  if (task.item >= int64_t{lookup.tables.count} * lookup.runs || c >= dim) return;
  const int32_t run = static_cast<int32_t>(task.item);
  const int32_t t =
      static_cast<int32_t>(static_cast<uint32_t>(run) / static_cast<uint32_t>(lookup.runs));
  const mpe_table& table = lookup.tables.table[t];
  if (table.pooling == MPE_pooling_none) return;
  const int32_t first = (run - t * lookup.runs) * lookup.run;
  const int32_t rest = static_cast<int32_t>(lookup.lookups.batch_size) - first;
  const BagRun bags(groups.lookup, group, t, first, rest < lookup.run ? rest : lookup.run);
  sum_table<Format, kAlignment>(lookup, table, bags, c);
}

// Tables without pooling: every lookup is a bag of one.
template <int kAlignment>
__global__ void lookups_kernel(Lookup lookup) {
  const LaneTask task(lookup, blockIdx.x);
  const int64_t p = task.item;
  const int32_t c = task.column, dim = lookup.tables.dim;
  if (p >= lookup.lookups.bag_offsets[lookup.bags()] || c >= dim) return;
  const int32_t t = lookup.table_of(lookup.lookups.bags[p]);
  const mpe_table& table = lookup.tables.table[t];
  if (table.pooling != MPE_pooling_none) return;
  float acc[kChunk] = {};
  with_format(table.precision, [&](auto format) {
    add_lookup<decltype(format), kAlignment>(lookup, table, static_cast<uint32_t>(p), c, acc);
  });
  const int64_t line = p - lookup.lookups.bag_offsets[t * lookup.lookups.batch_size];
  store_outputs(OutputRows(lookup.out, table, t).at(line, c), lookup.out.format, dim - c, acc);
}

// Reads a stored row column by column; the header is decoded once.
template <class Format>
class RowReader {
 public:
  __device__ RowReader(const uint8_t* row, int64_t dim)
      : row_(row), header_(Format::header(row, dim)) {}
  __device__ float operator()(int64_t c) const { return Format::value(row_, header_, c); }

 private:
  const uint8_t* row_;
  typename Format::RowHeader header_;
};

// Folds the lane tree of a tile: each lane brings the sum of its columns, zero if it has none, and
// gets the result.
__device__ float fold(const Tile& tile, float v) {
  if (tile.shift < 5) v = v + 0.0f;
  for (int s = 1 << tile.shift >> 1; s > 0; s >>= 1) v = v + __shfl_xor_sync(tile.mask, v, s);
  return v;
}

// This lane's share of the dot product of a gradient with a row's current values.
__device__ float dot(const Lookup& lookup, const Tile& tile, const mpe_table& table, int64_t p,
                     const uint8_t* grad) {
  const int32_t dim = lookup.tables.dim, lanes = 1 << tile.shift, format = lookup.out.format;
  float lane = 0.0f;
  const auto add = [&](auto row) {
    for (int32_t c = tile.lane; c < dim; c += lanes) {
      lane = fmaf(output_value(grad, format, c), row(c), lane);
    }
  };
  if (const float* cached = lookup.cache_row(p)) {
    add([=](int64_t c) { return cached[c]; });
    return lane;
  }
  const int64_t row = static_cast<int64_t>(lookup.lookups.keys[p]) - table.base;
  with_format(table.precision, [&](auto format) {
    using Format = decltype(format);
    add(RowReader<Format>(table.rows + row * table.row_stride, dim));
  });
  return lane;
}

__global__ void weight_grad_kernel(Lookup lookup, int32_t shift, float* out) {
  const Tile tile(shift);
  const int64_t p = tile.index();
  if (p >= lookup.lookups.bag_offsets[lookup.bags()]) return;
  const int64_t bag = lookup.lookups.bags[p], t = lookup.table_of(bag);
  const mpe_table& table = lookup.tables.table[t];
  const int64_t first = lookup.lookups.bag_offsets[t * lookup.lookups.batch_size];
  float result = 0.0f;
  if (lookup.lookups.keys[p] != MPE_DROPPED) {
    const int64_t line =
        table.pooling == MPE_pooling_none ? p - first : bag - t * lookup.lookups.batch_size;
    const uint8_t* grad = OutputRows(lookup.out, table, t).row(line);
    result = fold(tile, dot(lookup, tile, table, p, grad));
    if (table.pooling == MPE_pooling_mean) {
      result /=
          static_cast<float>(lookup.lookups.bag_offsets[bag + 1] - lookup.lookups.bag_offsets[bag]);
    }
  }
  if (tile.lane == 0) out[lookup.lookups.origins[t] + (p - first)] = result;
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
      load_floats(cache.rows + slot * tables.slot_floats() + c, dim - c, x);
    } else {
      read_table_chunk(tables, table, static_cast<int64_t>(key) - table.base, c, x);
    }
    store_floats(values + i * dim + c, dim - c, x);
  });
}

// How many bags a tile sums: about as many lookups as hide the wait for the first ones, but few
// enough that there are warps for the whole GPU.
int32_t bags_of_run(const mpe_lookups& lookups, int32_t tables, int32_t shift) {
  constexpr int64_t kLookups = 128, kWarps = 8192;
  const int64_t bags = tables * lookups.batch_size;
  int32_t run = 16;
  while (run > 1 &&
         (run * lookups.n > kLookups * bags || (bags << shift) / (run * kWarp) < kWarps)) {
    run /= 2;
  }
  return run;
}

Lookup make_lookup(const mpe_group& group, const mpe_lookups& lookups, const int32_t* slots,
                   const mpe_outputs& out) {
  const int32_t shift = tile_shift(group.dim);
  const int32_t tiles = static_cast<int32_t>(ceil_div(group.dim, kChunk << shift));
  const float* cached = group.cache != nullptr ? group.cache->rows : nullptr;
  const bool slotted = slots != nullptr, weighted = lookups.weights != nullptr;
  const int32_t run = bags_of_run(lookups, group.num_tables, shift);
  const int32_t runs = static_cast<int32_t>(ceil_div(lookups.batch_size, run));
  return Lookup{Tables(group), lookups, cached, slots, out, slotted,
                weighted,      shift,   tiles,  run,   runs};
}

// Gathers the pooled tables of several groups, to launch one kernel for as many as it takes.
class PooledLaunches {
 public:
  explicit PooledLaunches(void* stream) : stream_(stream) {}

  mpe_status add(const mpe_group& group, const Lookup& lookup) {
    const int64_t lanes = static_cast<int64_t>(lookup.tiles) << lookup.shift;
    const int64_t blocks = ceil_div(lanes * group.num_tables * lookup.runs, kBagThreads);
    const int32_t format = format_of(group);
    if (format == kNone || blocks == 0) return MPE_OK;
    if (count_ == GroupLookups::kMaxGroups || blocks_ + blocks > INT32_MAX) MPE_TRY(run());
    format_ = count_ == 0 || format == format_ ? format : kSeveral;
    alignment_ =
        count_ == 0 || lookup.tables.alignment < alignment_ ? lookup.tables.alignment : alignment_;
    groups_.lookup[count_] = lookup;
    groups_.first_block[count_] = static_cast<uint32_t>(blocks_);
    blocks_ += blocks;
    ++count_;
    return MPE_OK;
  }
  mpe_status run() {
    if (count_ == 0) return MPE_OK;
    for (int32_t i = count_; i < GroupLookups::kMaxGroups; ++i) groups_.first_block[i] = UINT32_MAX;
    const mpe_status status = alignment_ == kChunk       ? launch_aligned<kChunk>()
                              : alignment_ == kHalfChunk ? launch_aligned<kHalfChunk>()
                                                         : launch_aligned<1>();
    count_ = 0;
    blocks_ = 0;
    return status;
  }

 private:
  static constexpr int32_t kNone = -1, kSeveral = -2;

  // The format of a group's pooled tables, or one of these.
  static int32_t format_of(const mpe_group& group) {
    int32_t format = kNone;
    for (int32_t t = 0; t < group.num_tables; ++t) {
      const mpe_table& table = group.tables[t];
      if (table.pooling == MPE_pooling_none || table.precision == format) continue;
      if (format != kNone) return kSeveral;
      format = table.precision;
    }
    return format;
  }
  template <int kAlignment>
  mpe_status launch_aligned() const {
    if (format_ == kSeveral) return launch_kernel(bags_kernel<AnyFormat, kAlignment>);
    return with_format(format_, [&](auto format) {
      return launch_kernel(bags_kernel<decltype(format), kAlignment>);
    });
  }
  mpe_status launch_kernel(void (*kernel)(GroupLookups)) const {
    return launch_blocks("lookup", stream_, blocks_, kBagThreads, kernel, groups_);
  }

  void* stream_;
  GroupLookups groups_{};
  int64_t blocks_ = 0;
  int32_t count_ = 0, format_ = kNone, alignment_ = kChunk;
};

mpe_status launch_unpooled(const mpe_group& group, const Lookup& lookup, void* stream) {
  const auto unpooled = [](const mpe_table& t) { return t.pooling == MPE_pooling_none; };
  if (std::none_of(group.tables, group.tables + group.num_tables, unpooled)) return MPE_OK;
  const int64_t threads = (static_cast<int64_t>(lookup.tiles) << lookup.shift) * lookup.lookups.n;
  const auto kernel = lookup.tables.alignment == kChunk       ? lookups_kernel<kChunk>
                      : lookup.tables.alignment == kHalfChunk ? lookups_kernel<kHalfChunk>
                                                              : lookups_kernel<1>;
  return launch("lookup", stream, threads, kernel, lookup);
}

}  // namespace

// One launch serves all groups, by the kernel for the smallest alignment among them: loads of half
// chunks slow aligned rows little. Rows that are not aligned are loaded column by column and have
// a launch of their own, so that they do not slow the others.
mpe_status lookup(const mpe_lookup_args* parts, int32_t n, void* stream) {
  PooledLaunches aligned(stream), unaligned(stream);
  for (int32_t i = 0; i < n; ++i) {
    const mpe_group& group = *parts[i].group;
    const Lookup lookup = make_lookup(group, *parts[i].lookups, parts[i].slots, *parts[i].outputs);
    MPE_TRY((lookup.tables.alignment > 1 ? aligned : unaligned).add(group, lookup));
    MPE_TRY(launch_unpooled(group, lookup, stream));
  }
  MPE_TRY(aligned.run());
  return unaligned.run();
}

mpe_status weight_grad(const mpe_group* group, const mpe_lookups* lookups, const int32_t* slots,
                       const mpe_outputs* grad, float* out, void* stream) {
  const Lookup lookup = make_lookup(*group, *lookups, slots, *grad);
  const int32_t shift = tile_shift(group->dim, 1);
  return launch("weight gradient", stream, lookups->n << shift, weight_grad_kernel, lookup, shift,
                out);
}

mpe_status read_rows(const mpe_group* group, const uint64_t* keys, int64_t n, float* values,
                     void* stream) {
  const mpe_cache cache = group->cache != nullptr ? *group->cache : mpe_cache{};
  const int32_t shift = tile_shift(group->dim);
  return launch("rows", stream, n << shift, read_rows_kernel, Tables(*group), cache, shift, keys, n,
                values);
}

}  // namespace cuda
}  // namespace mpembed
