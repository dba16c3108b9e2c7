// What a C++ program does with the headers alone: rows encoded, decoded and updated one by one.
#include "mpembed/optim/step.h"
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

// The update number `count` of a row. parameters: lr, weight_decay and the optimizer's own.
void update_row(int32_t optimizer, int32_t decay_mode, const double* parameters, uint64_t count,
                float* w, float* g, float* const* states, int64_t dim) {
  with_optimizer(optimizer, [&](auto o) {
    using Optimizer = decltype(o);
    float c[MPE_MAX_COEFFICIENTS] = {};
    Optimizer::coefficients(parameters, decay_mode, count, c);
    optimizer_step<Optimizer>(decay_mode, c, w, g, states, dim);
  });
}
}
