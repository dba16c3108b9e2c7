// int5: codes of five bits, lowest bits first, eight in five bytes, FP16 scale and bias.
#ifndef MPEMBED_FORMAT_INT5_H
#define MPEMBED_FORMAT_INT5_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int5 : Affine<5, HeaderFp16> {};

MPE_END

#endif
