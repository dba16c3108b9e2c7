// An open batch: each group's share of it, and what all calls of the step do with one.
#pragma once

#include <cstring>
#include <new>
#include <vector>

#include "mpembed/step.h"
#include "step/workspace.h"
#include "total_rows.h"

namespace mpembed::step {

// A group's share of a batch.
struct Share {
  mpe_lookups lookups{};
  mpe_unique unique{};          // of a group with a cache, once reserved
  int64_t unique_capacity = 0;  // at least as many as the unique rows; on the CPU their number
  int32_t* slots = nullptr;     // of the unique rows, as the admission left them
  mpe_found found{};            // all NULL where nobody reads it
  bool pinned = false;

  const mpe_found* kept() const { return found.slots != nullptr ? &found : nullptr; }
};

}  // namespace mpembed::step

struct mpe_open_batch {
  mpe_collection* collection = nullptr;
  mpe_batch batch{};                         // as the caller gave it; its arrays are not read
  std::vector<mpembed::step::Share> shares;  // one a group
  mpembed::step::Memory lookups, weights, unique, slots;
  mpe_error* errors = nullptr;  // one a group, where the kernels run
  uint64_t capture = 0;
  uint64_t admission = 0;  // which of the collection's
  bool discarded = false;  // a device has emptied the batch if something is wrong in it
  bool reserved = false;   // the unique rows are known, and there is room for their slots
  bool weighted = false, admitted = false, open = true;

  const mpe_backend& backend() const { return *collection->backend; }
  int32_t num_errors() const { return collection->num_groups; }
  const mpe_group& group(size_t g) const { return collection->groups[g]; }
};

namespace mpembed::step {

// Whether a call has done its work when it returns, and says then what is wrong.
inline bool is_synchronous(const mpe_backend& backend) {
  return std::strcmp(backend.name, "cpu") == 0;
}

inline bool has_cache(const mpe_collection& collection) {
  for (int32_t g = 0; g < collection.num_groups; ++g) {
    if (collection.groups[g].cache != nullptr) return true;
  }
  return false;
}

// Unpins and gives back; the first failure's status.
mpe_status close(mpe_open_batch* open, void* stream);

// Lets a device empty a batch in which something is wrong, before its first use.
mpe_status discard_refused(mpe_open_batch* open, void* stream);

// Finds the unique rows of the groups that have a cache, and room for their slots. No state
// changes; may be called again.
mpe_status reserve(mpe_open_batch* open, void* stream);

// The arrays of the unique rows of n lookups.
void take_unique(Arrays& arrays, int64_t n, mpe_unique* unique);

// Takes a write step.
inline mpe_status advance(mpe_collection* collection, void* stream) {
  return collection->backend->advance(collection->step, stream);
}
// Takes it back, of a call that has changed nothing.
inline void undo_step(mpe_collection* collection) {
  if (is_synchronous(*collection->backend)) --*collection->step;
}

// Runs a function of the C API; the host's own memory may be short too.
template <class Call>
mpe_status guarded(Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return MPE_ERR_MEMORY;
  }
}

}  // namespace mpembed::step
