// Shared by the self-tests of the SIMT emulation: named checks, device arrays, launches.
#ifndef SIMT_CHECKS_H
#define SIMT_CHECKS_H

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <string>
#include <vector>

#ifndef MPE_SHARED
#define MPE_SHARED(type, name, count) __shared__ type name[count]
#endif

constexpr unsigned kAll = 0xFFFFFFFFu;

inline std::map<std::string, void (*)()>& checks() {
  static std::map<std::string, void (*)()> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { checks()[name] = run; }
};

#define CHECK(name)                                               \
  static void check_##name();                                     \
  static const Registration register_##name(#name, check_##name); \
  static void check_##name()

#define EXPECT(...)                                                             \
  do {                                                                          \
    if (!(__VA_ARGS__)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
      exit(1);                                                                  \
    }                                                                           \
  } while (false)

// A device array: the constructor copies to the device, get() back.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : n_(values.size()) {
    EXPECT(cudaMalloc(&data_, n_ * sizeof(T)) == cudaSuccess);
    EXPECT(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  explicit Array(size_t n) : Array(std::vector<T>(n)) {}
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  std::vector<T> get() const {
    std::vector<T> values(n_);
    EXPECT(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#endif
