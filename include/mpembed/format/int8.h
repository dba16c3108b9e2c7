// int8: INT8 codes with an FP32 scale and bias, which torch's embedding_bag_byte_rowwise_offsets
// reads.
#ifndef MPEMBED_FORMAT_INT8_H
#define MPEMBED_FORMAT_INT8_H

#include "mpembed/format/affine.h"

MPE_BEGIN

struct Int8 : Affine<8, HeaderFp32> {};

MPE_END

#endif
