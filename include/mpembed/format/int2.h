// int2: four codes a byte, lowest bits first, FP16 scale and bias.
#ifndef MPEMBED_FORMAT_INT2_H
#define MPEMBED_FORMAT_INT2_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int2 : Affine<2, HeaderFp16> {};

MPE_END

#endif
