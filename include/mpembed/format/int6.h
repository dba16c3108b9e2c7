// int6: codes of six bits, lowest bits first, four in three bytes, FP16 scale and bias.
#ifndef MPEMBED_FORMAT_INT6_H
#define MPEMBED_FORMAT_INT6_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int6 : Affine<6, HeaderFp16> {};

MPE_END

#endif
