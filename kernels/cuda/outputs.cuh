// Outputs and their gradients, in FP32, FP16 or BF16: a launch has one format, so that a branch on
// it is the same for all lanes.
#pragma once

#include "cuda/chunk.cuh"
#include "outputs.h"

namespace mpembed {
namespace cuda {

__device__ __forceinline__ bool is_fp32(int32_t format) {
  return kModel || format == MPE_format_fp32;
}

// The value of an FP16 or BF16 code.
__device__ __forceinline__ float widened(int32_t format, uint32_t code) {
  return format == MPE_format_fp16 ? half_value(static_cast<int32_t>(code))
                                   : bfloat_value(static_cast<int32_t>(code));
}

// Element c of a row.
__device__ __forceinline__ float output_value(const uint8_t* row, int32_t format, int32_t c) {
  if (is_fp32(format)) return reinterpret_cast<const float*>(row)[c];
  return widened(format, reinterpret_cast<const uint16_t*>(row)[c]);
}

// Columns [c, c + 8) of a row of gradients, in two steps, so that no load waits for another.
struct GradientChunk {
  float x[kChunk];

  // Zero from column `dim` on.
  __device__ __forceinline__ void load(const uint8_t* row, int32_t format, int32_t c, int32_t dim) {
    const uint8_t* from = row + c * output_bytes(format);
    const int32_t columns = dim - c;
    if (is_fp32(format)) {
      load_floats(reinterpret_cast<const float*>(from), columns, x);
      return;
    }
    uint32_t codes[kChunk / 2] = {};
    if (wide(from, columns)) {
      load_piece<16>(from, codes);
    } else {
      MPE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        if (j < columns) put_bits<16>(codes, j, reinterpret_cast<const uint16_t*>(from)[j]);
      }
    }
    MPE_UNROLL
    for (int i = 0; i < kChunk / 2; ++i) x[i] = bits_float(codes[i]);
  }

  __device__ __forceinline__ void decode(int32_t format) {
    if (is_fp32(format)) return;
    uint32_t codes[kChunk / 2];
    MPE_UNROLL
    for (int i = 0; i < kChunk / 2; ++i) codes[i] = float_bits(x[i]);
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) x[j] = widened(format, get_bits<16>(codes, j) & 0xFFFFu);
  }
};

// The nearest FP16 or BF16 code of a value.
__device__ __forceinline__ uint32_t narrowed(int32_t format, float x) {
  const int32_t code = format == MPE_format_fp16 ? half_code_of_any(x) : bfloat_code_of_any(x);
  return static_cast<uint32_t>(code) & 0xFFFFu;
}

// Stores the first `columns` of eight outputs.
__device__ __forceinline__ void store_outputs(uint8_t* to, int32_t format, int32_t columns,
                                              const float* x) {
  if (is_fp32(format)) {
    store_floats(reinterpret_cast<float*>(to), columns, x);
  } else if (wide(to, columns)) {
    uint32_t codes[kChunk / 2] = {};
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) put_bits<16>(codes, j, narrowed(format, x[j]));
    store_piece<16>(to, codes);
  } else {
    MPE_UNROLL
    for (int j = 0; j < kChunk; ++j) {
      if (j >= columns) break;
      reinterpret_cast<uint16_t*>(to)[j] = static_cast<uint16_t>(narrowed(format, x[j]));
    }
  }
}

}  // namespace cuda
}  // namespace mpembed
