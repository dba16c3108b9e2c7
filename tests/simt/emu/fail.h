// How emulated device code ends early.
#ifndef SIMT_EMU_FAIL_H
#define SIMT_EMU_FAIL_H

namespace simt {

// A source line, taken as a default argument: it is that of the call.
struct Site {
  const char* file;
  int line;
  const char* function;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return Site{file, line, function};
  }
};

// In a kernel: ends the launch with the sticky error cudaErrorAssert. On the host: abort().
[[noreturn]] void assert_failed(const char* condition, const char* file, int line,
                                const char* function);

// Ends the launch with the sticky error cudaErrorLaunchFailure.
[[noreturn]] void trap(Site site);

// A mistake that hardware does not report: prints where it happened and aborts the process
// (SIMT_FAULT=error: the launch fails with cudaErrorLaunchFailure).
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace simt

#endif
