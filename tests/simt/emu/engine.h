// The engine as emulated device code sees it: the thread's identity, and where it may have to wait.
#ifndef SIMT_EMU_ENGINE_H
#define SIMT_EMU_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "emu/fail.h"
#include "emu/vector_types.h"

namespace simt {

unsigned lane_id();

enum class Op : uint8_t {
  kSyncWarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kMatchAll,
  kReduceAdd,
  kReduceMinU,
  kReduceMaxU,
  kReduceMinS,
  kReduceMaxS,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
  kBarrier,
  kBarrierCount,
  kBarrierAnd,
  kBarrierOr,
};

// Waits for the lanes of the mask. argument: the shuffle's lane, delta or mask.
uint64_t collective(Op op, unsigned mask, uint64_t value, int argument, int width, Site site);

// Waits for the threads of the block that have not exited.
int barrier(Op op, int predicate, Site site);

// A point where another thread may run.
void preempt();

// While one exists, no other thread runs, so the code in its scope is one atomic operation.
class Uninterrupted {
 public:
  Uninterrupted();
  ~Uninterrupted();
  Uninterrupted(const Uninterrupted&) = delete;
  Uninterrupted& operator=(const Uninterrupted&) = delete;
};

// The running block's memory for one MPE_SHARED declaration.
void* shared_array(const void* key, size_t bytes, size_t align, const char* name, Site site);

// Faults unless p is aligned and, if it points to device memory, lies within an allocation.
void check_access(const volatile void* p, size_t bytes, size_t align, Site site);

}  // namespace simt

// Set whenever another thread starts to run. They are objects, not macros, because
// cudaLaunchConfig_t has members of these names.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
extern const int warpSize;  // no constant expression, as with nvcc

// One array per block and declaration, as with __shared__; each instantiation of a template has its
// own.
#define MPE_SHARED(type, name, count)                                                             \
  static_assert(::std::is_trivially_default_constructible<type>::value, "shared memory is raw");  \
  static char simt_key_##name;                                                                    \
  using simt_type_##name = type[count];                                                           \
  simt_type_##name& name = *static_cast<simt_type_##name*>(                                       \
      ::simt::shared_array(&simt_key_##name, sizeof(simt_type_##name), alignof(simt_type_##name), \
                           #name, ::simt::Site::here()))

inline void __syncthreads(simt::Site site = simt::Site::here()) {
  simt::barrier(simt::Op::kBarrier, 0, site);
}
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(simt::Op::kBarrierCount, predicate, site);
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(simt::Op::kBarrierAnd, predicate, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(simt::Op::kBarrierOr, predicate, site);
}

[[noreturn]] inline void __trap(simt::Site site = simt::Site::here()) { simt::trap(site); }
inline void __threadfence_block() { simt::preempt(); }
inline void __threadfence() { simt::preempt(); }
inline void __threadfence_system() { simt::preempt(); }
inline void __nanosleep(unsigned) { simt::preempt(); }

// Programmatic dependent launch. A launch always ends before the next one starts.
inline void cudaGridDependencySynchronize() { simt::preempt(); }
inline void cudaTriggerProgrammaticLaunchCompletion() { simt::preempt(); }

#endif
