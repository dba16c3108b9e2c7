// The launchers of the CUDA backend; api_functions.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

namespace mpembed {
namespace cuda {

#define MPE_FUNCTION(result, name, arguments) result name arguments;
#include "mpembed/api_functions.h"

}  // namespace cuda
}  // namespace mpembed
