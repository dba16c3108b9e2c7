// Streams and events as captures see them.
#ifndef SIMT_EMU_STREAM_H
#define SIMT_EMU_STREAM_H

#include <stdint.h>

#include <chrono>
#include <map>

#include "emu/api.h"
#include "emu/fail.h"

namespace simt {

struct Capture;

// How much of each captured stream's work comes before an event.
using Before = std::map<cudaStream_t, uint64_t>;

}  // namespace simt

struct CUstream_st {
  unsigned flags;
  int priority;
  int device;
  simt::Capture* capture;
};

struct CUevent_st {
  unsigned flags;
  bool recorded;
  std::chrono::steady_clock::time_point time;
  uint64_t capture;  // in which it was recorded last, or 0
  simt::Before before;
};

namespace simt {

// CUDA's runtime may crash when asked about a destroyed stream, so this is a fault.
void fault_if_destroyed(cudaStream_t stream, Site site);

}  // namespace simt

#endif
