// The kernels of one instruction-set level; api_functions.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

#define MPE_FUNCTION(result, name, arguments) result name arguments;
#include "mpembed/api_functions.h"

MPE_END
