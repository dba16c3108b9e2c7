// The kernels of an optimizer of the user's own, for rows of one size (MPE_OWN_LONG). Compiled
// behind its source, by NVRTC or for the emulation.
#pragma once

#include "cuda/update_tile.cuh"
#include "own_description.h"

namespace mpembed {
namespace own {
constexpr bool kLong = MPE_OWN_LONG != 0;
}
}  // namespace mpembed

extern "C" {

// See update_kernel.
__global__ void __launch_bounds__(
    mpembed::cuda::kThreads,
    (mpembed::cuda::blocks_of<mpembed::own::Optimizer, mpembed::own::kLong>()))
    mpe_own_update(const __grid_constant__ mpembed::cuda::Update update, mpembed::cuda::HotRows hot,
                   int32_t shift, int32_t rows, uint32_t first, mpe_error* nonfinite) {
  mpembed::cuda::update_tile<mpembed::own::Optimizer, mpembed::own::kLong>(update, hot, shift, rows,
                                                                           first, nonfinite);
}

// Of a group's tables, after coefficients_kernel has counted the update.
__global__ void mpe_own_coefficients(const mpe_parameters* tables, int64_t n,
                                     const uint64_t* updates, float* coefficients) {
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
    mpembed::own::Optimizer::coefficients(tables[t].values, tables[t].decay_mode, *updates,
                                          coefficients + t * MPE_MAX_COEFFICIENTS);
  }
}
}
