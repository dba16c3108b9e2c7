// Admission and lookup of open batches.
#include "step/results.h"
#include "step/slots.h"

namespace mpembed::step {
namespace {

// Admits a reserved batch, if any group has a cache, and takes a write step with the first of
// these; on failure it is closed.
mpe_status admit(mpe_open_batch* open, void* stream) {
  const mpe_backend& backend = open->backend();
  uint64_t* step = open->collection->step;
  open->admission = ++open->collection->admissions;
  for (size_t g = 0; g < open->shares.size(); ++g) {
    const mpe_group& group = open->group(g);
    if (group.cache == nullptr) continue;
    Share& share = open->shares[g];
    const mpe_status status =
        backend.cache_admit(&group, &share.unique, share.lookups.n, share.lookups.dropped, step,
                            share.slots, share.kept(), stream);
    if (status != MPE_OK) {
      close(open, stream);
      return status;
    }
    share.pinned = true;
    step = nullptr;
  }
  open->admitted = true;
  return MPE_OK;
}

mpe_status admit_ahead(mpe_open_batch* open, void* stream) {
  if (!open->open || open->admitted) return MPE_ERR_VALUE;
  MPE_TRY(reserve(open, stream));
  if (!has_cache(*open->collection)) MPE_TRY(advance(open->collection, stream));
  return admit(open, stream);
}

// What a lookup of one batch needs besides its lookups.
class Lookup {
 public:
  Lookup(const mpe_open_batch& open, const mpe_results& results, void* stream)
      : open_(open),
        stream_(stream),
        memory_(open.backend(), stream),
        results_(*open.collection, results),
        rooms_(open.shares.size()),
        arguments_(open.shares.size()) {}

  mpe_status allocate() {
    for (size_t g = 0; g < rooms_.size(); ++g) rooms_[g].fit(open_, g);
    MPE_TRY(memory_.borrow([this](Arrays& arrays) {
      for (SlotRoom& room : rooms_) room.take(arrays);
      results_.take(arrays);
    }));
    return results_.fill(stream_);
  }

  // just_admitted: nothing can have been admitted or written since the batch was.
  mpe_status run(bool just_admitted) {
    for (size_t g = 0; g < rooms_.size(); ++g) {
      mpe_lookup_args& arguments = arguments_[g];
      arguments.group = &open_.group(g);
      arguments.lookups = &open_.shares[g].lookups;
      arguments.outputs = results_.of(g);
      const Share& share = open_.shares[g];
      const int32_t* slots = share.kept() != nullptr ? share.found.slots : share.slots;
      const int32_t* fresh = just_admitted ? slots : nullptr;
      MPE_TRY(lookup_slots(open_, g, rooms_[g], fresh, stream_, &arguments.slots));
    }
    const int32_t count = static_cast<int32_t>(arguments_.size());
    return open_.backend().lookup(arguments_.data(), count, stream_);
  }

 private:
  const mpe_open_batch& open_;
  void* const stream_;
  CallMemory memory_;
  Results results_;
  std::vector<SlotRoom> rooms_;
  std::vector<mpe_lookup_args> arguments_;
};

mpe_status look_up_and_count(mpe_open_batch* open, Lookup* lookup, bool just_admitted,
                             bool* counted, void* stream) {
  MPE_TRY(lookup->run(just_admitted));
  *counted = true;
  for (size_t g = 0; g < open->shares.size(); ++g) {
    const mpe_group& group = open->group(g);
    if (group.cache != nullptr) continue;  // an admission counts
    MPE_TRY(open->backend().count(&group, &open->shares[g].lookups, nullptr, 1, 1, stream));
  }
  return MPE_OK;
}

mpe_status forward(mpe_open_batch* open, mpe_open_batch* replaced, const mpe_results& results,
                   void* stream) {
  if (!open->open || replaced == open) return MPE_ERR_VALUE;
  MPE_TRY(reserve(open, stream));
  Lookup lookup(*open, results, stream);
  MPE_TRY(lookup.allocate());
  const bool admits = !open->admitted, changes = admits && has_cache(*open->collection);
  if (!changes) MPE_TRY(advance(open->collection, stream));
  if (replaced != nullptr) MPE_TRY(close(replaced, stream));
  if (admits) MPE_TRY(admit(open, stream));
  bool counted = false;
  const mpe_status status = look_up_and_count(open, &lookup, admits, &counted, stream);
  if (status == MPE_OK) return status;
  close(open, stream);
  if (!changes && !counted) undo_step(open->collection);
  return status;
}

mpe_status evaluate(mpe_open_batch* open, const mpe_results& results, void* stream) {
  if (!open->open) return MPE_ERR_VALUE;
  MPE_TRY(discard_refused(open, stream));
  Lookup lookup(*open, results, stream);
  MPE_TRY(lookup.allocate());
  return lookup.run(false);
}

}  // namespace
}  // namespace mpembed::step

extern "C" {

MPE_EXPORT mpe_status mpe_admit(mpe_open_batch* open, void* stream) {
  return mpembed::step::guarded([&] { return mpembed::step::admit_ahead(open, stream); });
}

MPE_EXPORT mpe_status mpe_forward(mpe_open_batch* open, mpe_open_batch* replaced,
                                  const mpe_results* results, void* stream) {
  return mpembed::step::guarded(
      [&] { return mpembed::step::forward(open, replaced, *results, stream); });
}

MPE_EXPORT mpe_status mpe_evaluate(mpe_open_batch* open, const mpe_results* results, void* stream) {
  return mpembed::step::guarded([&] { return mpembed::step::evaluate(open, *results, stream); });
}
}
