/* The integers of <stdint.h> and <stddef.h>, also where NVRTC compiles, which has no headers. Plain
 * C. */
#ifndef MPEMBED_INTEGERS_H
#define MPEMBED_INTEGERS_H

#if defined(__CUDACC_RTC__)

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef long intptr_t;
typedef unsigned long uintptr_t;
static_assert(sizeof(int64_t) == 8 && sizeof(uintptr_t) == 8, "kernels need 64 bits");

#define INT64_C(x) x##L
#define UINT64_C(x) x##UL
#define INT32_C(x) x
#define INT32_MAX 2147483647
#define UINT32_MAX 4294967295U
#define INT64_MAX INT64_C(9223372036854775807)
#define UINT64_MAX UINT64_C(18446744073709551615)

#else

#include <stddef.h>
#include <stdint.h>

#endif

#endif
