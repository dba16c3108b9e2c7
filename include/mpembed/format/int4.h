// int4: two codes a byte, low nibble first, FP16 scale and bias (the layout of torch's
// embedding_bag_4bit).
#ifndef MPEMBED_FORMAT_INT4_H
#define MPEMBED_FORMAT_INT4_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int4 : Affine<4, HeaderFp16> {};

MPE_END

#endif
