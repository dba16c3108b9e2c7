// CUDA's keywords for g++.
#ifndef SIMT_EMU_QUALIFIERS_H
#define SIMT_EMU_QUALIFIERS_H

// Standard headers that use __noinline__ as an attribute's name go before it becomes a macro.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cassert>
#include <memory>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(n)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define CUDART_CB
#define CUDARTAPI

#endif
