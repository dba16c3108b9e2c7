// What a Collection's forward leaves for its backward.
#ifndef MPEMBED_COLLECTION_OPEN_BATCH_H
#define MPEMBED_COLLECTION_OPEN_BATCH_H

#include "mpembed/collection/memory.h"
#include "mpembed/step.h"

namespace mpembed {

// A batch whose rows are pinned from its forward to its backward, or until it is dropped. It may
// not outlive its collection.
class OpenBatch {
 public:
  OpenBatch() = default;
  OpenBatch(const Device& device, mpe_open_batch* handle) : device_(&device), handle_(handle) {}
  OpenBatch(OpenBatch&& other) noexcept { *this = std::move(other); }
  OpenBatch& operator=(OpenBatch&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~OpenBatch() { drop(); }

  void drop() {
    if (handle_ != nullptr) mpe_close(handle_, device_->stream());
    mpe_free(handle_);
    handle_ = nullptr;
  }
  mpe_open_batch* handle() const { return handle_; }

 private:
  const Device* device_ = nullptr;
  mpe_open_batch* handle_ = nullptr;
};

// An open batch's share of a backward.
struct Gradient {
  OpenBatch& batch;
  const float* grad;             // of its outputs: batch_size rows of width() columns
  float* weight_grad = nullptr;  // room for the gradient of its weights, one an index; or NULL
};

}  // namespace mpembed

#endif
