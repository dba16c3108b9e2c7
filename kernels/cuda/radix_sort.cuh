// CUB's radix sort with stream-ordered workspace.
#pragma once

#include <cub/cub.cuh>

#include "cuda/launch.cuh"

namespace mpembed {
namespace cuda {

// A stable radix sort of pairs by the low `bits` bits. plan() says what workspace it needs.
template <class Key, class Value>
class PairSort {
 public:
  PairSort(int64_t n, int bits, void* stream) : n_(n), bits_(bits), stream_(stream) {}

  mpe_status plan(Workspace* workspace, const char* operation) {
    keys_ = workspace->plan<Key>(2 * n_);
    values_ = workspace->plan<Value>(2 * n_);
    if (!idle()) MPE_TRY(check(call(nullptr), operation));
    temporary_ = workspace->plan<char>(static_cast<int64_t>(bytes_));
    return MPE_OK;
  }
  void place(const Workspace& workspace) {
    Key* keys = workspace.get(keys_);
    Value* values = workspace.get(values_);
    by_key_ = cub::DoubleBuffer<Key>(keys, keys + n_);
    order_ = cub::DoubleBuffer<Value>(values, values + n_);
  }

  // Fill these before run(); it leaves the result here.
  Key* keys() { return by_key_.Current(); }
  Value* values() { return order_.Current(); }

  mpe_status run(const Workspace& workspace, const char* operation) {
    return idle() ? MPE_OK : check(call(workspace.get(temporary_)), operation);
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
  Planned<Key> keys_{};
  Planned<Value> values_{};
  Planned<char> temporary_{};
  cub::DoubleBuffer<Key> by_key_;
  cub::DoubleBuffer<Value> order_;
};

}  // namespace cuda
}  // namespace mpembed
