// The CPU's part of an optimizer of the user's own, as mpe_own_optimizer has it. Compiled behind
// its source, at the instruction-set level of the library that will call it.
#pragma once

#include "cpu/row_update.h"
#include "own_description.h"

extern "C" {

MPE_EXPORT void mpe_own_coefficients(const double* values, int32_t decay_mode, uint64_t updates,
                                     float* coefficients) {
  mpembed::own::Optimizer::coefficients(values, decay_mode, updates, coefficients);
}

MPE_EXPORT void mpe_own_step(const void* settings, void* rows) {
  using namespace mpembed;
  RowStep<own::Optimizer>(*static_cast<const StepSettings*>(settings),
                          *static_cast<RowsInWork*>(rows))
      .run();
}
}
