// One update from open batches, and the gradient of their weights.
#include <algorithm>

#include "step/results.h"
#include "step/slots.h"

namespace mpembed::step {
namespace {

using Batches = std::vector<mpe_batch_gradient>;

// Writes the gradient of one batch's weights. fresh: each group's slots of the unique rows where
// they are known.
mpe_status write_weight_grad(const mpe_open_batch& open, const Results& grad, const SlotRoom& room,
                             const int32_t* const* fresh, float* out, void* stream) {
  const mpe_backend& backend = open.backend();
  // The kernels do not write where a device refuses the batch.
  if (!is_synchronous(backend)) {
    const int64_t bytes = open.batch.num_indices * static_cast<int64_t>(sizeof(float));
    MPE_TRY(backend.fill(out, 0, bytes, stream));
  }
  for (size_t g = 0; g < open.shares.size(); ++g) {
    const int32_t* slots = nullptr;
    MPE_TRY(lookup_slots(open, g, room, fresh == nullptr ? nullptr : fresh[g], stream, &slots));
    MPE_TRY(backend.weight_grad(&open.group(g), &open.shares[g].lookups, slots, grad.of(g), out,
                                stream));
  }
  return MPE_OK;
}

mpe_status weight_grad(mpe_open_batch* batch, const mpe_results& gradient, float* out,
                       void* stream) {
  if (!batch->open) return MPE_ERR_VALUE;
  MPE_TRY(discard_refused(batch, stream));
  const mpe_open_batch& open = *batch;
  CallMemory memory(open.backend(), stream);
  Results results(*open.collection, gradient);
  SlotRoom room;
  for (size_t g = 0; g < open.shares.size(); ++g) room.fit(open, g);
  MPE_TRY(memory.borrow([&](Arrays& arrays) {
    room.take(arrays);
    results.take(arrays);
  }));
  MPE_TRY(results.fill(stream));
  return write_weight_grad(open, results, room, nullptr, out, stream);
}

// What a group's update needs: the unique rows of all its lookups, and their slots.
struct GroupUpdate {
  std::vector<mpe_gradient> gradients;
  int64_t n = 0;  // lookups of all batches
  mpe_unique unique{};
  uint64_t* keys = nullptr;  // of all batches, where there are several
  int32_t* room = nullptr;   // for slots
  const int32_t* slots = nullptr;
  int32_t* fresh = nullptr;  // room where the update is to refresh the slots and to unpin the rows
  const mpe_found* found = nullptr;  // by the admission of the slots, or NULL
};

class Backward {
 public:
  Backward(mpe_collection* collection, const mpe_batch_gradient* batches, int32_t n, void* stream)
      : collection_(collection),
        backend_(*collection->backend),
        batches_(batches, batches + n),
        stream_(stream),
        memory_(backend_, stream),
        updates_(static_cast<size_t>(collection->num_groups)),
        fresh_(updates_.size()) {
    results_.reserve(batches_.size());
    for (const mpe_batch_gradient& batch : batches_) results_.emplace_back(*collection, batch.grad);
  }

  mpe_status run() {
    MPE_TRY(collect());
    MPE_TRY(allocate());
    for (size_t g = 0; g < updates_.size(); ++g) MPE_TRY(find_rows(g));
    MPE_TRY(find_rows_at_once());
    MPE_TRY(write_weight_grads());
    MPE_TRY(begin());
    return update();
  }

 private:
  bool single() const { return batches_.size() == 1; }
  const mpe_open_batch& first() const { return *batches_[0].batch; }
  const mpe_group& group(size_t g) const { return collection_->groups[g]; }
  bool is_trained(size_t g) const { return group(g).optimizer != nullptr; }
  // Whether the admission of the only batch has found the group's unique rows.
  bool has_rows(size_t g) const { return single() && group(g).cache != nullptr; }

  mpe_status collect() {
    for (const mpe_batch_gradient& batch : batches_) {
      if (batch.grad.format != batches_[0].grad.format) return MPE_ERR_VALUE;
    }
    for (size_t g = 0; g < updates_.size(); ++g) {
      GroupUpdate& update = updates_[g];
      update.gradients.reserve(batches_.size());
      for (size_t b = 0; b < batches_.size(); ++b) {
        const mpe_lookups& lookups = batches_[b].batch->shares[g].lookups;
        update.gradients.push_back(mpe_gradient{&lookups, results_[b].of(g)});
        update.n += lookups.n;
      }
      if (update.n > MPE_MAX_LOOKUPS) return MPE_ERR_VALUE;
    }
    return MPE_OK;
  }

  mpe_status allocate() {
    for (const mpe_batch_gradient& batch : batches_) {
      if (batch.weight_grad == nullptr) continue;
      for (size_t g = 0; g < updates_.size(); ++g) room_.fit(*batch.batch, g);
    }
    MPE_TRY(memory_.borrow([this](Arrays& arrays) {
      for (size_t g = 0; g < updates_.size(); ++g) take_rows(arrays, g);
      room_.take(arrays);
      for (Results& results : results_) results.take(arrays);
    }));
    for (Results& results : results_) MPE_TRY(results.fill(stream_));
    return MPE_OK;
  }

  void take_rows(Arrays& arrays, size_t g) {
    GroupUpdate& update = updates_[g];
    if (has_rows(g)) {
      update.room = arrays.take<int32_t>(first().shares[g].unique_capacity);
      return;
    }
    if (!is_trained(g)) return;
    if (!single()) update.keys = arrays.take<uint64_t>(update.n);
    take_unique(arrays, update.n, &update.unique);
    if (group(g).cache != nullptr) update.room = arrays.take<int32_t>(update.n);
  }

  // The unique rows of a group's lookups and their slots.
  mpe_status find_rows(size_t g) {
    GroupUpdate& update = updates_[g];
    if (has_rows(g)) {
      update.unique = first().shares[g].unique;
      if (!is_synchronous(backend_) && is_trained(g) && batches_[0].weight_grad == nullptr) {
        update.slots = first().shares[g].slots;
        update.fresh = update.room;
        update.found = first().shares[g].kept();
        return MPE_OK;
      }
      MPE_TRY(fresh_slots(first(), g, update.room, stream_, &update.slots));
      fresh_[g] = update.slots;
      return MPE_OK;
    }
    if (!is_trained(g)) return MPE_OK;
    const mpe_lookups& lookups = first().shares[g].lookups;
    if (single() && !is_synchronous(backend_)) {
      at_once_.push_back({&group(g), &lookups, &update.unique});
      return MPE_OK;
    }
    const uint64_t* keys = lookups.keys;
    if (!single()) {
      MPE_TRY(join_keys(update));
      keys = update.keys;
    }
    MPE_TRY(backend_.dedup(keys, update.n, total_rows(group(g)), &update.unique, stream_));
    if (group(g).cache == nullptr) return MPE_OK;
    update.slots = update.room;
    MPE_TRY(backend_.fill(update.room, 0xFF, update.n * static_cast<int64_t>(sizeof(int32_t)),
                          stream_));  // none is known
    return backend_.cache_refresh(&group(g), &update.unique, update.n, update.room, update.room,
                                  stream_);
  }

  // The same of all groups without a cache, on a device.
  mpe_status find_rows_at_once() {
    return backend_.discard(at_once_.data(), static_cast<int32_t>(at_once_.size()), nullptr, 0,
                            nullptr, stream_);
  }

  mpe_status join_keys(const GroupUpdate& update) {
    uint64_t* to = update.keys;
    for (const mpe_gradient& gradient : update.gradients) {
      const int64_t n = gradient.lookups->n;
      const int64_t bytes = n * static_cast<int64_t>(sizeof(uint64_t));
      MPE_TRY(backend_.copy(to, gradient.lookups->keys, bytes, stream_));
      to += n;
    }
    return MPE_OK;
  }

  mpe_status write_weight_grads() {
    for (size_t b = 0; b < batches_.size(); ++b) {
      if (batches_[b].weight_grad == nullptr) continue;
      MPE_TRY(write_weight_grad(*batches_[b].batch, results_[b], room_,
                                single() ? fresh_.data() : nullptr, batches_[b].weight_grad,
                                stream_));
    }
    return MPE_OK;
  }

  // The step is taken. What fails in the first group has changed nothing; later the batches are
  // closed, so that no second try updates a group twice.
  mpe_status update() {
    bool changed = false;
    mpe_status status = MPE_OK;
    for (size_t g = 0; g < updates_.size() && status == MPE_OK; ++g) {
      if (is_trained(g)) status = update_group(g, &changed);
    }
    if (status != MPE_OK && !changed) {
      undo_step(collection_);
      if (is_synchronous(backend_)) --*collection_->updates;
      return status;
    }
    for (const mpe_batch_gradient& batch : batches_) {
      const mpe_status closed = close(batch.batch, stream_);
      if (status == MPE_OK) status = closed;
    }
    return status;
  }

  // Takes the write step.
  mpe_status begin() {
    int64_t tables = 0;
    for (size_t g = 0; g < updates_.size(); ++g) tables += group(g).num_tables;
    return backend_.begin_update(collection_->step, collection_->parameters, tables,
                                 collection_->updates, collection_->coefficients, stream_);
  }

  mpe_status update_group(size_t g, bool* changed) {
    const GroupUpdate& update = updates_[g];
    const mpe_status status =
        backend_.update(&group(g), update.gradients.data(),
                        static_cast<int32_t>(update.gradients.size()), &update.unique, update.slots,
                        update.fresh, update.found, collection_->errors + 1 + g, stream_);
    // A device that refuses a launch may have taken the pins back by an earlier one, and a pin that
    // stays does less harm than one that is taken back twice.
    const bool begun = status == MPE_OK || status == MPE_ERR_DEVICE;
    *changed = *changed || begun;
    if (begun && update.fresh != nullptr) batches_[0].batch->shares[g].pinned = false;
    if (status != MPE_OK) return status;
    if (group(g).cache != nullptr) return MPE_OK;  // an admission counts
    return backend_.count(&group(g), update.gradients[0].lookups, &update.unique, 0, 0, stream_);
  }

  mpe_collection* const collection_;
  const mpe_backend& backend_;
  const Batches batches_;
  void* const stream_;
  CallMemory memory_;
  std::vector<Results> results_;  // one a batch
  std::vector<GroupUpdate> updates_;
  std::vector<const int32_t*> fresh_;  // one a group
  std::vector<mpe_share> at_once_;
  SlotRoom room_;
};

// Whether batches can be used in one update of the collection.
bool are_usable(const mpe_collection* collection, const mpe_batch_gradient* batches, int32_t n) {
  if (n < 1 || n > MPE_MAX_GRADIENTS) return false;
  for (int32_t i = 0; i < n; ++i) {
    const mpe_open_batch* batch = batches[i].batch;
    if (batch->collection != collection || !batch->open || !batch->admitted) return false;
    for (int32_t j = 0; j < i; ++j) {
      if (batches[j].batch == batch) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace mpembed::step

extern "C" {

MPE_EXPORT mpe_status mpe_weight_grad(mpe_open_batch* open, const mpe_results* grad, float* out,
                                      void* stream) {
  return mpembed::step::guarded(
      [&] { return mpembed::step::weight_grad(open, *grad, out, stream); });
}

MPE_EXPORT mpe_status mpe_backward(mpe_collection* collection, const mpe_batch_gradient* batches,
                                   int32_t n, void* stream) {
  if (!mpembed::step::are_usable(collection, batches, n)) return MPE_ERR_VALUE;
  return mpembed::step::guarded(
      [&] { return mpembed::step::Backward(collection, batches, n, stream).run(); });
}
}
