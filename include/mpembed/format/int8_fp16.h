// int8_fp16: INT8 codes with an FP16 scale and bias.
#ifndef MPEMBED_FORMAT_INT8_FP16_H
#define MPEMBED_FORMAT_INT8_FP16_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int8Fp16 : Affine<8, HeaderFp16> {};

MPE_END

#endif
