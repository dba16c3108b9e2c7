// Stands in for the header of CCCL.
#include "emu/cub/iterators.h"
