// Settings from environment variables, which README.md lists.
#ifndef SIMT_EMU_OPTIONS_H
#define SIMT_EMU_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

namespace simt {

struct Options {
  bool random;          // SIMT_SCHEDULE=random, else lockstep
  uint64_t seed;        // SIMT_SEED
  unsigned preempt;     // SIMT_PREEMPT, of 256: how often another thread runs at such a point
  size_t resident;      // SIMT_RESIDENT: blocks that run interleaved
  size_t stack_bytes;   // SIMT_STACK, in KiB
  size_t memory_bytes;  // SIMT_MEMORY, in MiB: the device's memory
  int64_t fail_alloc;   // SIMT_FAIL_ALLOC: this allocation fails, counted from 1
  int devices;          // SIMT_DEVICES
  int multiprocessors;  // SIMT_SMS
  double timeout;       // SIMT_TIMEOUT: the most seconds of a launch
  bool log;             // SIMT_LOG
  bool abort_on_fault;  // unless SIMT_FAULT=error
  bool pools;           // unless SIMT_POOLS=0: devices have memory pools
  bool pageable;        // SIMT_PAGEABLE=1: devices read the host's page tables
  bool protect;         // SIMT_PROTECT=1: host code that touches device memory gets SIGSEGV
};

Options& options();

}  // namespace simt

// For a test that changes settings within a process.
extern "C" {
// schedule: "random", "lockstep" or null (no change).
void simt_set_schedule(const char* schedule, uint64_t seed);
// The n-th allocation from now fails; 0 means none.
void simt_fail_alloc(int64_t n);
int64_t simt_live_allocations(void);
int64_t simt_live_bytes(void);
int64_t simt_launches(void);
int64_t simt_launches_on(int device);
int64_t simt_calls(void);  // of the runtime, launches included
int64_t simt_copies(void);
int64_t simt_fills(void);
int64_t simt_allocations(void);  // of device memory
int64_t simt_default_pool_uses(void);
int64_t simt_threads(void);
}

#endif
