// The optimizers of the user's own that this library knows, and their kernels.
#include "own_optimizers.h"

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/driver.h"
#include "cuda/own_kernels.h"
#include "cuda/uncaptured.cuh"

namespace mpembed {
namespace {

OwnOptimizers g_optimizers;

}  // namespace

const mpe_own_optimizer* own_optimizer(int32_t kind) { return g_optimizers.find(kind); }

namespace cuda {
namespace {

static_assert(kRound == MPE_SHORT_ROW, "callers say which rows are long");

// What kernels are compiled for: optimizer, device, formats, and whether rows are long.
using Key = std::tuple<int32_t, int, uint32_t, bool>;

std::map<Key, OwnKernels> g_kernels;
std::mutex g_mutex;

// The driver's functions, by their names there.
struct Driver {
  int (*load)(void** module, const void* image);
  int (*find)(void** function, void* module, const char* name);
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                unsigned block_y, unsigned block_z, unsigned shared, cudaStream_t stream,
                void** arguments, void** extra);

  static const Driver& get() {
    static const Driver driver{
        driver_function<decltype(load)>("cuModuleLoadData", 2000),
        driver_function<decltype(find)>("cuModuleGetFunction", 2000),
        driver_function<decltype(launch)>("cuLaunchKernel", 4000),
    };
    return driver;
  }
  bool complete() const { return load != nullptr && find != nullptr && launch != nullptr; }
};

// The driver's errors have the runtime's numbers.
mpe_status check_driver(int error, const char* operation) {
  return check(static_cast<cudaError_t>(error), operation);
}

// The module stays loaded until the process ends: graphs may hold its kernels.
mpe_status load(const void* code, OwnKernels* kernels) {
  const Driver& driver = Driver::get();
  void* module = nullptr;
  if (!driver.complete()) return failed(cudaErrorNotSupported, "loading an optimizer");
  MPE_TRY(check(cudaFree(nullptr), "loading an optimizer"));  // makes a context where there is none
  MPE_TRY(check_driver(driver.load(&module, code), "loading an optimizer"));
  MPE_TRY(check_driver(driver.find(&kernels->update.kernel, module, "mpe_own_update"),
                       "loading an optimizer"));
  return check_driver(driver.find(&kernels->coefficients.kernel, module, "mpe_own_coefficients"),
                      "loading an optimizer");
}

mpe_status load_optimizer(int32_t number, const mpe_own_optimizer& optimizer, uint32_t formats,
                          bool long_rows, const void* code) {
  const Uncaptured uncaptured;
  int device = 0;
  MPE_TRY(check(cudaGetDevice(&device), "loading an optimizer"));
  const std::lock_guard<std::mutex> lock(g_mutex);
  const Key key{number, device, formats, long_rows};
  if (g_kernels.count(key) != 0) return MPE_OK;
  OwnKernels kernels;
  MPE_TRY(load(code, &kernels));
  MPE_TRY(g_optimizers.add(number, optimizer));
  g_kernels[key] = kernels;
  return MPE_OK;
}

}  // namespace

mpe_status launch_loaded(void* kernel, void* stream, int64_t threads, void** arguments) {
  const int64_t blocks = ceil_div(threads, kThreads);
  if (blocks <= 0) return MPE_OK;
  if (blocks > INT32_MAX) return failed(cudaErrorInvalidConfiguration, "update");
  return check_driver(Driver::get().launch(kernel, static_cast<unsigned>(blocks), 1, 1, kThreads, 1,
                                           1, 0, stream_of(stream), arguments, nullptr),
                      "update");
}

mpe_status find_own_kernels(const mpe_group& group, OwnKernels* found) {
  int device = 0;
  MPE_TRY(check(cudaGetDevice(&device), "update"));
  uint32_t formats = 0;
  for (int32_t t = 0; t < group.num_tables; ++t) formats |= 1u << group.tables[t].precision;
  const std::lock_guard<std::mutex> lock(g_mutex);
  const auto at = g_kernels.find(Key{group.optimizer->kind, device, formats, group.dim > kRound});
  if (at == g_kernels.end()) return failed(cudaErrorInvalidDeviceFunction, "update");
  *found = at->second;
  return MPE_OK;
}

mpe_status begin_own_update(const mpe_group& group, const OwnKernels& kernels, void* stream) {
  const mpe_optimizer& optimizer = *group.optimizer;
  // The memory of begin_update, which writes there what this kernel computes anew.
  float* coefficients = const_cast<float*>(optimizer.coefficients);
  return kernels.coefficients.launch(stream, 1, optimizer.parameters, group.num_tables,
                                     optimizer.updates, coefficients);
}

}  // namespace cuda
}  // namespace mpembed

extern "C" MPE_EXPORT mpe_status mpe_cuda_load_optimizer(int32_t number,
                                                         const mpe_own_optimizer* optimizer,
                                                         uint32_t formats, int32_t long_rows,
                                                         const void* code) {
  return mpembed::cuda::load_optimizer(number, *optimizer, formats, long_rows != 0, code);
}
