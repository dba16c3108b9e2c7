// Writes outside of the training of batches, and what kernels found wrong.
#include "mpembed/error.h"
#include "step/open_batch.h"

namespace mpembed::step {
namespace {

mpe_status flush(mpe_collection* collection, void* stream) {
  MPE_TRY(advance(collection, stream));
  bool flushed = false;
  for (int32_t g = 0; g < collection->num_groups; ++g) {
    if (collection->groups[g].cache == nullptr) continue;
    const mpe_status status = collection->backend->cache_flush(collection->groups + g, stream);
    if (status != MPE_OK) {
      if (!flushed) undo_step(collection);
      return status;
    }
    flushed = true;
  }
  return MPE_OK;
}

bool any(const mpe_error* errors, int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    if (errors[i].status != MPE_OK) return true;
  }
  return false;
}

int64_t error_bytes(int32_t n) { return n * static_cast<int64_t>(sizeof(mpe_error)); }

mpe_status read_errors(const mpe_backend& backend, const mpe_error* errors, int32_t n, void* stream,
                       mpe_error* out) {
  MPE_TRY(backend.copy(out, errors, error_bytes(n), stream));
  return backend.synchronize(stream);
}

mpe_status batch_error(const mpe_open_batch& open, void* stream, mpe_error* out) {
  const int32_t n = open.num_errors();
  std::vector<mpe_error> errors(static_cast<size_t>(n));
  if (!open.open) return MPE_ERR_VALUE;
  MPE_TRY(read_errors(open.backend(), open.errors, n, stream, errors.data()));
  *out = first_error(errors.data(), n);
  return MPE_OK;
}

mpe_status take_errors(mpe_collection* collection, void* stream, mpe_error* out) {
  const mpe_backend& backend = *collection->backend;
  const int32_t n = 1 + collection->num_groups;
  MPE_TRY(read_errors(backend, collection->errors, n, stream, out));
  if (!any(out, n)) return MPE_OK;
  const std::vector<mpe_error> none(static_cast<size_t>(n), mpe_error MPE_NO_ERROR);
  return backend.copy(collection->errors, none.data(), error_bytes(n), stream);
}

}  // namespace
}  // namespace mpembed::step

extern "C" {

MPE_EXPORT mpe_status mpe_batch_error(const mpe_open_batch* open, void* stream, mpe_error* out) {
  return mpembed::step::guarded([&] { return mpembed::step::batch_error(*open, stream, out); });
}

MPE_EXPORT mpe_status mpe_flush(mpe_collection* collection, void* stream) {
  return mpembed::step::flush(collection, stream);
}

MPE_EXPORT mpe_status mpe_write_rows(mpe_collection* collection, int32_t group,
                                     const uint64_t* keys, int64_t n, const float* values,
                                     void* stream) {
  MPE_TRY(mpembed::step::advance(collection, stream));
  const mpe_status status =
      collection->backend->write_rows(collection->groups + group, keys, n, values, stream);
  if (status != MPE_OK) mpembed::step::undo_step(collection);
  return status;
}

MPE_EXPORT mpe_status mpe_take_errors(mpe_collection* collection, void* stream, mpe_error* out) {
  return mpembed::step::guarded(
      [&] { return mpembed::step::take_errors(collection, stream, out); });
}
}
