// int4: two codes a byte, low nibble first, FP16 scale and bias, which torch's
// embedding_bag_4bit_rowwise_offsets reads.
#ifndef MPEMBED_FORMAT_INT4_H
#define MPEMBED_FORMAT_INT4_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int4 : Affine<4, HeaderFp16> {};

MPE_END

#endif
