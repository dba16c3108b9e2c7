// Optimizers of the user's own, whose numbers begin at MPE_NUM_OPTIMIZERS.
#pragma once

#include "mpembed/api_types.h"

namespace mpembed {

// NULL if this library knows none with this number.
const mpe_own_optimizer* own_optimizer(int32_t kind);

}  // namespace mpembed
