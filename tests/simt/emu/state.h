// The engine's own view of a launch; kernels see engine.h.
#ifndef SIMT_EMU_STATE_H
#define SIMT_EMU_STATE_H

#include <pthread.h>
#include <stdint.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emu/api.h"
#include "emu/engine.h"
#include "emu/fiber.h"

namespace simt {

struct Block;
struct Warp;

struct Request {
  Op op;
  unsigned mask;
  uint64_t value;
  int argument;
  int width;
  Site site;
};

enum class State : uint8_t { kReady, kInCollective, kAtBarrier, kExited };

struct Lane {
  uint3 thread_index{};
  Fiber fiber;
  Warp* warp = nullptr;
  unsigned id = 0;
  State state = State::kReady;
  Request request{};
  uint64_t result = 0;
};

struct Warp {
  Block* block = nullptr;
  Lane* lanes = nullptr;
  unsigned index = 0;
  // Bit sets of lanes.
  unsigned exists = 0, ready = 0, waiting = 0, exited = 0;
};

// The MPE_SHARED arrays of one resident block, with guards between them.
class SharedMemory {
 public:
  SharedMemory();
  void* find(const void* key, size_t bytes, size_t align, const char* name, Site site);
  void start_launch();
  void start_block();
  void check(const Block& block) const;

 private:
  struct Array {
    const void* key;
    const char* name;
    char* data;
    size_t bytes;
    Site site;
    bool fresh;
  };
  std::unique_ptr<char[]> arena_;
  size_t used_ = 0;
  std::vector<Array> arrays_;
};

struct Block {
  uint3 index{};
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  unsigned ready_warps = 0;
  unsigned alive = 0;
  unsigned at_barrier = 0;
  const Lane* first_at_barrier = nullptr;
  SharedMemory shared;
};

struct Launch {
  const void* kernel = nullptr;
  pthread_t thread{};
  const std::function<void()>* body = nullptr;
  dim3 grid, block;
  cudaError_t error = cudaSuccess;
  uint64_t random = 1;
  unsigned points = 0;  // of preemption, since the last switch under lockstep
};

extern Launch* launch;

// The running thread, null in host code. One launch runs at a time in a process.
extern Lane* self;
inline Lane& current() { return *self; }
// Other host threads may read it too.
inline bool in_kernel() {
  return self != nullptr && pthread_equal(launch->thread, pthread_self()) != 0;
}

uint32_t next_random();
// A point of preemption for instrumented code.
void plain_access();
void make_ready(Lane& lane);
// Lets other threads run; returns when the lane runs again.
void yield();
void lane_exits(Lane& lane);

const char* op_name(Op op);
std::string kernel_name(const void* kernel);
// Prints one line that starts with the kernel and, if not null, the thread.
void report(const Lane* lane, const Site* site, const char* message);
// Describes what the threads of a block wait for.
void report_stuck(const Block& block, const char* why);
// Ends the launch, from a fiber or from the scheduler: abort() or the sticky error.
void end_launch(cudaError_t error);
[[noreturn]] void leave_for_good();
void install_signal_handler();

}  // namespace simt

#endif
