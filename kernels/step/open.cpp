// Opens batches, compares and closes them.
#include <algorithm>
#include <memory>

#include "mpembed/error.h"
#include "step/open_batch.h"

namespace mpembed::step {
namespace {

int64_t offset_bytes(const mpe_batch& batch) {
  return (batch.num_features * batch.batch_size + 1) * (batch.offset_bits / 8);
}

int64_t offset(const mpe_batch& batch, int64_t i) {
  if (batch.offset_bits == 32) return static_cast<const int32_t*>(batch.offsets)[i];
  return static_cast<const int64_t*>(batch.offsets)[i];
}

mpe_status refuse(int64_t value, mpe_error* error) {
  *error = mpe_error{MPE_ERR_VALUE, 0, 0, value, 1};
  return MPE_ERR_VALUE;
}

// What offsets and kernels cannot check.
mpe_status check_fields(const mpe_collection& collection, const mpe_batch& batch,
                        mpe_error* error) {
  int32_t tables = 0, most = 1;
  for (int32_t g = 0; g < collection.num_groups; ++g) {
    const int32_t own = collection.groups[g].num_tables;
    tables += own;
    most = own > most ? own : most;
  }
  if (batch.num_features != tables) return refuse(batch.num_features, error);
  for (const int32_t bits : {batch.index_bits, batch.offset_bits}) {
    if (bits != 32 && bits != 64) return refuse(bits, error);
  }
  for (const int64_t size : {batch.num_indices, batch.batch_size}) {
    if (size < 0) return refuse(size, error);
  }
  return batch.batch_size > MPE_MAX_LOOKUPS / most ? refuse(batch.batch_size, error) : MPE_OK;
}

// How many lookups of a batch are the group's: on the CPU exactly, on a device at most.
int64_t num_lookups(const mpe_group& group, const mpe_batch& batch, bool synchronous) {
  if (!synchronous || group.num_tables == batch.num_features) return batch.num_indices;
  int64_t n = 0;
  for (int32_t t = 0; t < group.num_tables; ++t) {
    const int64_t first = group.tables[t].feature * batch.batch_size;
    n += offset(batch, first + batch.batch_size) - offset(batch, first);
  }
  return n;
}

// Borrows the arrays of the lookups of all groups, and their weights. offsets: if not NULL, where
// room for a copy of the batch's is to be kept.
mpe_status borrow_lookups(mpe_open_batch* open, char** offsets, void* stream) {
  MPE_TRY(borrow_arrays(open->backend(), stream, &open->lookups, [&](Arrays& arrays) {
    if (offsets != nullptr) *offsets = arrays.take<char>(offset_bytes(open->batch));
    open->errors = arrays.take<mpe_error>(open->num_errors());
    for (size_t g = 0; g < open->shares.size(); ++g) {
      mpe_lookups& lookups = open->shares[g].lookups;
      const int64_t tables = open->group(g).num_tables;
      lookups.keys = arrays.take<uint64_t>(lookups.n);
      lookups.bags = arrays.take<int32_t>(lookups.n);
      lookups.bag_offsets = arrays.take<int64_t>(tables * lookups.batch_size + 1);
      lookups.origins = arrays.take<int64_t>(tables);
      lookups.dropped = arrays.take<int64_t>(tables);
    }
  }));
  if (!open->weighted) return MPE_OK;
  return borrow_arrays(open->backend(), stream, &open->weights, [&](Arrays& arrays) {
    for (Share& share : open->shares) share.lookups.weights = arrays.take<float>(share.lookups.n);
  });
}

// Reads each group's lookups out of the batch, whose offsets are checked.
mpe_status prepare(mpe_open_batch* open, const mpe_batch& batch, void* stream, mpe_error* error) {
  bool refused = false;
  for (size_t g = 0; g < open->shares.size(); ++g) {
    const mpe_status status =
        open->backend().prepare(&open->group(g), &batch, open->collection->drop,
                                &open->shares[g].lookups, stream, open->errors + g);
    if (status != MPE_OK && status != MPE_ERR_INDEX) return status;
    refused = refused || status == MPE_ERR_INDEX;
  }
  if (!refused) return MPE_OK;
  // All groups are asked, so that the first position of all is named.
  *error = first_error(open->errors, open->num_errors());
  return MPE_ERR_INDEX;
}

// How many lookups each group has; on the CPU only for valid offsets.
mpe_status set_sizes(mpe_open_batch* open, const mpe_batch& batch, mpe_error* error) {
  const bool synchronous = is_synchronous(open->backend());
  for (size_t g = 0; g < open->shares.size(); ++g) {
    mpe_lookups& lookups = open->shares[g].lookups;
    lookups.n = num_lookups(open->group(g), batch, synchronous);
    lookups.batch_size = batch.batch_size;
    if (lookups.n > MPE_MAX_LOOKUPS) return refuse(lookups.n, error);
  }
  return MPE_OK;
}

// The caller may change its memory during a call. So the offsets are copied, and the copy is what
// is checked and used; an index is read once, where it is checked.
mpe_status copy_offsets(const mpe_backend& backend, char* to, mpe_batch* batch, void* stream) {
  MPE_TRY(backend.copy(to, batch->offsets, offset_bytes(*batch), stream));
  batch->offsets = to;
  return MPE_OK;
}

// The CPU checks before it reads the sizes out of the offsets; a device as it reads them.
mpe_status fill_on_cpu(mpe_open_batch* open, mpe_error* error) {
  const mpe_backend& backend = open->backend();
  mpe_batch batch = open->batch;
  CallMemory memory(backend, nullptr);
  char* offsets = nullptr;
  MPE_TRY(memory.borrow([&](Arrays& arrays) { offsets = arrays.take<char>(offset_bytes(batch)); }));
  MPE_TRY(copy_offsets(backend, offsets, &batch, nullptr));
  MPE_TRY(backend.check_offsets(&batch, nullptr, error));
  MPE_TRY(set_sizes(open, batch, error));
  MPE_TRY(borrow_lookups(open, nullptr, nullptr));
  return prepare(open, batch, nullptr, error);
}

mpe_status fill_batch(mpe_open_batch* open, void* stream, mpe_error* error) {
  const mpe_backend& backend = open->backend();
  if (is_synchronous(backend)) return fill_on_cpu(open, error);
  mpe_batch batch = open->batch;
  char* offsets = nullptr;
  MPE_TRY(set_sizes(open, batch, error));
  MPE_TRY(borrow_lookups(open, &offsets, stream));
  MPE_TRY(copy_offsets(backend, offsets, &batch, stream));
  return prepare(open, batch, stream, error);
}

mpe_status open_batch(mpe_collection* collection, const mpe_batch& batch, void* stream,
                      mpe_open_batch** out, mpe_error* error) {
  MPE_TRY(check_fields(*collection, batch, error));
  auto open = std::make_unique<mpe_open_batch>();
  open->collection = collection;
  open->batch = batch;
  open->weighted = batch.weights != nullptr;
  open->shares.resize(static_cast<size_t>(collection->num_groups));
  MPE_TRY(collection->backend->capturing(stream, &open->capture));
  const mpe_status status = fill_batch(open.get(), stream, error);
  if (status == MPE_OK) {
    *out = open.release();
  } else {
    close(open.get(), stream);
  }
  return status;
}

mpe_status count_lookups(const mpe_open_batch& open, void* stream, int64_t* out) {
  const mpe_backend& backend = open.backend();
  const bool synchronous = is_synchronous(backend);
  if (!open.open) return MPE_ERR_VALUE;
  if (!synchronous) {
    mpe_error error;
    MPE_TRY(mpe_batch_error(&open, stream, &error));
    if (error.status == MPE_ERR_OFFSETS) {
      std::fill_n(out, open.batch.num_features, 0);
      return MPE_OK;
    }
  }
  std::vector<int64_t> copy;
  for (size_t g = 0; g < open.shares.size(); ++g) {
    const mpe_lookups& lookups = open.shares[g].lookups;
    const mpe_group& group = open.group(g);
    const int64_t* starts = lookups.bag_offsets;
    if (!synchronous) {
      copy.resize(static_cast<size_t>(group.num_tables * lookups.batch_size + 1));
      const int64_t bytes = static_cast<int64_t>(copy.size() * sizeof(int64_t));
      MPE_TRY(backend.copy(copy.data(), starts, bytes, stream));
      MPE_TRY(backend.synchronize(stream));
      starts = copy.data();
    }
    for (int32_t t = 0; t < group.num_tables; ++t, starts += lookups.batch_size) {
      out[group.tables[t].feature] = starts[lookups.batch_size] - starts[0];
    }
  }
  return MPE_OK;
}

bool same_lookups(const mpe_lookups& a, const mpe_lookups& b, int64_t tables) {
  const size_t bags = static_cast<size_t>(tables * a.batch_size + 1);
  return a.n == b.n && a.batch_size == b.batch_size &&
         std::memcmp(a.keys, b.keys, static_cast<size_t>(a.n) * sizeof *a.keys) == 0 &&
         std::memcmp(a.bag_offsets, b.bag_offsets, bags * sizeof *a.bag_offsets) == 0;
}

bool same_memory(const mpe_batch& a, const mpe_batch& b) {
  return a.indices == b.indices && a.offsets == b.offsets && a.num_indices == b.num_indices &&
         a.batch_size == b.batch_size && a.index_bits == b.index_bits &&
         a.offset_bits == b.offset_bits;
}

// On a device: empties the shares of a batch in which something is wrong, unless that was done.
// reserves: also finds the unique rows of the groups that have a cache.
mpe_status discard_shares(mpe_open_batch* open, bool reserves, void* stream) {
  std::vector<mpe_share> shares;
  shares.reserve(open->shares.size());
  for (size_t g = 0; g < open->shares.size(); ++g) {
    const mpe_group& group = open->group(g);
    const bool is_wanted = reserves && group.cache != nullptr;
    if (open->discarded && !is_wanted) continue;
    const Share& share = open->shares[g];
    shares.push_back({&group, &share.lookups, is_wanted ? &share.unique : nullptr});
  }
  return open->backend().discard(shares.data(), static_cast<int32_t>(shares.size()), open->errors,
                                 open->discarded ? 0 : open->num_errors(), open->collection->errors,
                                 stream);
}

// Whether rows that an admission brings in are read in their tables, until they are updated: a
// GPU's memory then moves fewer bytes. Rows in the host's memory would cross the bus again, and the
// CPU's caches have what was just written.
bool reads_admitted_in_tables(const mpe_backend& backend, const mpe_group& group) {
  if (is_synchronous(backend)) return false;
  for (int32_t t = 0; t < group.num_tables; ++t) {
    if (group.tables[t].placement == MPE_PLACEMENT_HOST) return false;
  }
  return true;
}

mpe_status reserve_arrays(mpe_open_batch* open, void* stream) {
  const mpe_backend& backend = open->backend();
  const auto each = [open](auto visit) {
    for (size_t g = 0; g < open->shares.size(); ++g) {
      if (open->group(g).cache != nullptr) visit(open->shares[g], open->group(g));
    }
  };
  const bool synchronous = is_synchronous(backend);
  const auto take_slots = [&](Arrays& arrays) {
    each([&](Share& share, const mpe_group& group) {
      share.slots = arrays.take<int32_t>(share.unique_capacity);
      if (!reads_admitted_in_tables(backend, group)) return;
      share.found = {arrays.take<int32_t>(share.unique_capacity), arrays.take<uint64_t>(1)};
    });
  };
  MPE_TRY(borrow_arrays(backend, stream, &open->unique, [&](Arrays& arrays) {
    each([&](Share& share, const mpe_group&) {
      take_unique(arrays, share.lookups.n, &share.unique);
      // A device is not waited for: its count is known to be at most this.
      share.unique_capacity = share.lookups.n;
    });
    if (!synchronous) take_slots(arrays);
  }));
  if (!synchronous) {
    MPE_TRY(discard_shares(open, true, stream));
    open->discarded = true;
    return MPE_OK;
  }
  for (size_t g = 0; g < open->shares.size(); ++g) {
    if (open->group(g).cache == nullptr) continue;
    Share& share = open->shares[g];
    MPE_TRY(backend.dedup(share.lookups.keys, share.lookups.n, total_rows(open->group(g)),
                          &share.unique, stream));
    share.unique_capacity = *share.unique.count;
  }
  return borrow_arrays(backend, stream, &open->slots, take_slots);
}

}  // namespace

void take_unique(Arrays& arrays, int64_t n, mpe_unique* unique) {
  unique->count = arrays.take<int64_t>(1);
  unique->rows = arrays.take<uint64_t>(n);
  unique->starts = arrays.take<int64_t>(n + 1);
  unique->positions = arrays.take<int32_t>(n);
}

mpe_status discard_refused(mpe_open_batch* open, void* stream) {
  if (open->discarded || is_synchronous(open->backend())) return MPE_OK;
  MPE_TRY(discard_shares(open, false, stream));
  open->discarded = true;
  return MPE_OK;
}

mpe_status reserve(mpe_open_batch* open, void* stream) {
  if (open->reserved || !has_cache(*open->collection)) return discard_refused(open, stream);
  const mpe_status status = reserve_arrays(open, stream);
  open->reserved = status == MPE_OK;
  if (status != MPE_OK) open->unique.give_back(open->backend(), stream);
  return status;
}

mpe_status close(mpe_open_batch* open, void* stream) {
  if (!open->open) return MPE_OK;
  open->open = false;
  const mpe_backend& backend = open->backend();
  mpe_status status = MPE_OK;
  for (size_t g = 0; g < open->shares.size(); ++g) {
    Share& share = open->shares[g];
    if (!share.pinned) continue;
    share.pinned = false;
    const mpe_status released = backend.cache_release(open->group(g).cache, &share.unique,
                                                      share.lookups.n, share.slots, stream);
    if (status == MPE_OK) status = released;
  }
  for (Memory* memory : {&open->lookups, &open->weights, &open->unique, &open->slots}) {
    memory->give_back(backend, stream);
  }
  return status;
}

}  // namespace mpembed::step

extern "C" {

MPE_EXPORT mpe_status mpe_open(mpe_collection* collection, const mpe_batch* batch, void* stream,
                               mpe_open_batch** out, mpe_error* error) {
  *out = nullptr;
  *error = mpe_error MPE_NO_ERROR;
  return mpembed::step::guarded(
      [&] { return mpembed::step::open_batch(collection, *batch, stream, out, error); });
}

MPE_EXPORT mpe_status mpe_close(mpe_open_batch* open, void* stream) {
  return mpembed::step::close(open, stream);
}

MPE_EXPORT void mpe_forget(mpe_open_batch* open) {
  open->open = false;
  for (mpembed::step::Memory* memory :
       {&open->lookups, &open->weights, &open->unique, &open->slots}) {
    memory->forget();
  }
}

MPE_EXPORT void mpe_free(mpe_open_batch* open) { delete open; }

MPE_EXPORT void mpe_describe_batch(const mpe_open_batch* open, mpe_batch_info* out) {
  *out = mpe_batch_info{};
  out->bytes =
      open->lookups.bytes() + open->weights.bytes() + open->unique.bytes() + open->slots.bytes();
  out->batch_size = open->batch.batch_size;
  out->num_indices = open->batch.num_indices;
  out->capture = open->capture;
  out->open = open->open;
  out->admitted = open->admitted && open->open;
  out->weighted = open->weighted;
}

MPE_EXPORT mpe_status mpe_count_lookups(const mpe_open_batch* open, void* stream, int64_t* out) {
  return mpembed::step::guarded([&] { return mpembed::step::count_lookups(*open, stream, out); });
}

MPE_EXPORT int32_t mpe_same_rows(const mpe_open_batch* a, const mpe_open_batch* b) {
  if (a->collection != b->collection || !a->open || !b->open) return 0;
  if (!mpembed::step::is_synchronous(a->backend())) {
    return mpembed::step::same_memory(a->batch, b->batch);
  }
  for (size_t g = 0; g < a->shares.size(); ++g) {
    if (!mpembed::step::same_lookups(a->shares[g].lookups, b->shares[g].lookups,
                                     a->group(g).num_tables)) {
      return 0;
    }
  }
  return 1;
}

MPE_EXPORT void mpe_take_weights(mpe_open_batch* to, mpe_open_batch* from) {
  to->weights.swap(from->weights);
  std::swap(to->weighted, from->weighted);
  for (size_t g = 0; g < to->shares.size(); ++g) {
    std::swap(to->shares[g].lookups.weights, from->shares[g].lookups.weights);
  }
}
}
