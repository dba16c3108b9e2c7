// What a C++ program does with the headers alone: rows encoded, decoded and updated one by one.
#include "mpembed/registry_types.h"

using namespace mpembed;

extern "C" {

void encode_row(int32_t format, const float* x, int64_t dim, uint8_t* row, const uint16_t* draws) {
  with_format(format, [&](auto f) { decltype(f)::encode(x, dim, row, draws); });
}

void decode_row(int32_t format, const uint8_t* row, int64_t dim, float* x) {
  with_format(format, [&](auto f) {
    decltype(f)::for_each(row, dim, [&](int64_t c, float v) { x[c] = v; });
  });
}

void update_row(int32_t optimizer, float lr, float eps, float* w, const float* g, float* h,
                int64_t dim) {
  const OptimizerSettings settings{lr, eps, 0.0f, kDecayNone};
  with_optimizer(optimizer, [&](auto o) { decltype(o)::step(settings, w, g, h, dim); });
}
}
