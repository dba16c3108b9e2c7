// Stands in for CUB: the device-wide functions that the project uses, computed on the host.
#ifndef SIMT_CUB_CUB_CUH
#define SIMT_CUB_CUB_CUH

#include "emu/cub/iterators.h"
#include "emu/cub/radix.h"
#include "emu/cub/scan.h"

#endif
