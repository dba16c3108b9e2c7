// Stands in for CUDA's header: with tests/simt first on the include path, g++ compiles .cu files
// and the SIMT emulation (emu/*.cpp) runs them. README.md says how.
#ifndef SIMT_CUDA_RUNTIME_H
#define SIMT_CUDA_RUNTIME_H

#include "emu/qualifiers.h"
// The macros of the line above come first because everything else may use them.
#include "emu/api.h"
#include "emu/atomics.h"
#include "emu/bits.h"
#include "emu/engine.h"
#include "emu/launch.h"
#include "emu/memory.h"
#include "emu/vector_types.h"
#include "emu/warp.h"

#endif
