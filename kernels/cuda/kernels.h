// The launchers of the CUDA backend; api.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

namespace mpembed {
namespace cuda {

#include "functions.inc"

}  // namespace cuda
}  // namespace mpembed
