// The kernels of one instruction-set level; api.h documents each.
#pragma once

#include "mpembed/api.h"
#include "mpembed/macros.h"

MPE_BEGIN

#include "functions.inc"

MPE_END
