// CUB's device-wide algorithms with stream-ordered workspace.
#pragma once

#include <cub/cub.cuh>

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

// Calls run(temporary, bytes) twice, as CUB requires: first for the size, then for the work.
template <class Run>
mpe_status with_temporary(void* stream, const char* operation, Run run) {
  size_t bytes = 0;
  forget_error();  // CUB reports whatever another library left behind
  MPE_TRY(check(run(nullptr, bytes), operation));
  Workspace<char> temporary(stream);
  MPE_TRY(temporary.acquire(static_cast<int64_t>(bytes), operation));
  return check(run(temporary.get(), bytes), operation);
}

// A stable radix sort of pairs by the low `bits` bits. acquire() gets all workspace, before
// anything is queued.
template <class Key, class Value>
class PairSort {
 public:
  PairSort(int64_t n, int bits, void* stream)
      : n_(n), bits_(bits), stream_(stream), keys_(stream), values_(stream), temporary_(stream) {}

  mpe_status acquire(const char* operation) {
    MPE_TRY(keys_.acquire(2 * n_, operation));
    MPE_TRY(values_.acquire(2 * n_, operation));
    by_key_ = cub::DoubleBuffer<Key>(keys_.get(), keys_.get() + n_);
    order_ = cub::DoubleBuffer<Value>(values_.get(), values_.get() + n_);
    if (idle()) return MPE_OK;
    MPE_TRY(check(call(nullptr), operation));
    return temporary_.acquire(static_cast<int64_t>(bytes_), operation);
  }

  // Fill these before run(); it leaves the result here.
  Key* keys() { return by_key_.Current(); }
  Value* values() { return order_.Current(); }

  mpe_status run(const char* operation) {
    return idle() ? MPE_OK : check(call(temporary_.get()), operation);
  }

 private:
  bool idle() const { return n_ == 0 || bits_ == 0; }
  cudaError_t call(void* temporary) {
    forget_error();  // CUB reports whatever another library left behind
    return cub::DeviceRadixSort::SortPairs(temporary, bytes_, by_key_, order_, n_, 0, bits_,
                                           stream_of(stream_));
  }

  int64_t n_;
  int bits_;
  void* stream_;
  size_t bytes_ = 0;
  Workspace<Key> keys_;
  Workspace<Value> values_;
  Workspace<char> temporary_;
  cub::DoubleBuffer<Key> by_key_;
  cub::DoubleBuffer<Value> order_;
};

}  // namespace cuda
}  // namespace mpembed
