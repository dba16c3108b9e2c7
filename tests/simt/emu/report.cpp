// Messages, and how a kernel ends early.
#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>
#include <tuple>

#include "emu/device_memory.h"
#include "emu/options.h"
#include "emu/state.h"

namespace simt {
namespace {

std::string place(const uint3& v) {
  char text[48];
  snprintf(text, sizeof text, "(%u,%u,%u)", v.x, v.y, v.z);
  return text;
}

std::string demangle(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  free(text);
  return result;
}

// Reads symbols that the dynamic table lacks, such as kernels in an anonymous namespace.
std::string ask_addr2line(const char* module, uintptr_t offset) {
  char command[4096], line[1024] = "";
  snprintf(command, sizeof command, "addr2line -Cfe '%s' 0x%zx 2>/dev/null", module,
           static_cast<size_t>(offset));
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  if (fgets(line, sizeof line, pipe) == nullptr) line[0] = '\0';
  pclose(pipe);
  line[strcspn(line, "\n")] = '\0';
  return strcmp(line, "??") == 0 ? "" : line;
}

}  // namespace

const char* op_name(Op op) {
  static const char* const names[] = {
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
      "__shfl_xor_sync",   "__ballot_sync",     "__any_sync",        "__all_sync",
      "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
      "__reduce_or_sync",  "__reduce_xor_sync", "__syncthreads",     "__syncthreads_count",
      "__syncthreads_and", "__syncthreads_or"};
  return names[static_cast<int>(op)];
}

std::string kernel_name(const void* kernel) {
  static std::map<const void*, std::string> known;
  std::string& name = known[kernel];
  if (!name.empty()) return name;
  Dl_info info{};
  if (dladdr(kernel, &info) != 0) {
    if (info.dli_sname != nullptr && info.dli_saddr == kernel) {
      name = demangle(info.dli_sname);
    } else if (info.dli_fname != nullptr) {
      name = ask_addr2line(info.dli_fname, reinterpret_cast<uintptr_t>(kernel) -
                                               reinterpret_cast<uintptr_t>(info.dli_fbase));
    }
  }
  if (name.empty()) {
    char text[32];
    snprintf(text, sizeof text, "kernel at %p", kernel);
    name = text;
  }
  return name;
}

void report(const Lane* lane, const Site* site, const char* message) {
  std::string where;
  if (launch != nullptr) where += " in " + kernel_name(launch->kernel);
  if (lane != nullptr) {
    where += ", block " + place(lane->warp->block->index) + ", thread " +
             place(lane->thread_index) + " (warp " + std::to_string(lane->warp->index) + ", lane " +
             std::to_string(lane->id) + ")";
  }
  if (site != nullptr) {
    where += std::string(", ") + site->file + ":" + std::to_string(site->line) + " (" +
             site->function + ")";
  }
  fprintf(stderr, "SIMT fault%s: %s\n", where.c_str(), message);
  fflush(stderr);
}

void report_stuck(const Block& block, const char* why) {
  report(&block.lanes[0], nullptr, why);
  std::map<std::tuple<State, Op, int, unsigned>, std::pair<const Lane*, int>> groups;
  for (const Lane& lane : block.lanes) {
    const bool waits = lane.state == State::kInCollective || lane.state == State::kAtBarrier;
    auto key = std::make_tuple(lane.state, waits ? lane.request.op : Op::kSyncWarp,
                               waits ? lane.request.site.line : 0, waits ? lane.request.mask : 0);
    auto& group = groups.emplace(key, std::make_pair(&lane, 0)).first->second;
    ++group.second;
  }
  for (const auto& [key, group] : groups) {
    const Lane& first = *group.first;
    const Request& r = first.request;
    const std::string who =
        std::to_string(group.second) + " thread(s), the first " + place(first.thread_index) + ", ";
    if (first.state == State::kReady) {
      fprintf(stderr, "  %scan run\n", who.c_str());
    } else if (first.state == State::kExited) {
      fprintf(stderr, "  %shave exited\n", who.c_str());
    } else {
      fprintf(stderr, "  %swait in %s, mask 0x%08x, at %s:%d (%s)\n", who.c_str(), op_name(r.op),
              r.mask, r.site.file, r.site.line, r.site.function);
    }
  }
  fflush(stderr);
}

void end_launch(cudaError_t error) {
  if (options().abort_on_fault && error != cudaErrorAssert) abort();
  launch->error = error;
}

void leave_for_good() { fiber_end(); }

void fault(Site site, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  report(self == nullptr ? nullptr : &current(), &site, message);
  if (self == nullptr) abort();
  end_launch(cudaErrorLaunchFailure);
  leave_for_good();
}

void trap(Site site) {
  if (self == nullptr) fault(site, "__trap outside of a kernel");
  report(&current(), &site, "__trap");
  launch->error = cudaErrorLaunchFailure;
  leave_for_good();
}

void assert_failed(const char* condition, const char* file, int line, const char* function) {
  if (!in_kernel()) {
    fprintf(stderr, "%s:%d: %s: Assertion `%s' failed.\n", file, line, function, condition);
    abort();
  }
  const Site site{file, line, function};
  char message[512];  // needs no destructor, as the fiber never continues
  snprintf(message, sizeof message, "assertion `%s` failed", condition);
  report(&current(), &site, message);
  launch->error = cudaErrorAssert;
  leave_for_good();
}

#if defined(SIMT_ASAN)
void install_signal_handler() {}  // the sanitizer has one
#else
namespace {

struct sigaction previous_action;

// Reports what it can, then calls the handler that was installed before.
void on_segv(int, siginfo_t* info, void*) {
  const void* p = info->si_addr;
  if (in_kernel()) {
    report(&current(), nullptr,
           in_stack_guard(p) ? "stack overflow (SIMT_STACK)" : "invalid memory access");
  } else if (in_device_memory(p)) {
    fputs("SIMT: host code touches device memory\n", stderr);
  }
  sigaction(SIGSEGV, &previous_action, nullptr);
}

}  // namespace

void install_signal_handler() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  // A handler cannot run on the stack that overflowed.
  static char stack[64 * 1024];
  stack_t alternative{};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_segv;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_action);
}
#endif

}  // namespace simt
