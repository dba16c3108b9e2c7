// Stands in for the header of CCCL.
#include "emu/iterators.h"
