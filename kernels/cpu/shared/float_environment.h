// The floating-point environment that tasks compute in.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace mpembed::cpu {

// The default environment (round to nearest, keep subnormals, no traps) while it lives, whatever
// the caller has set and whatever a worker inherited when it was created.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() noexcept : saved_(get()) { set(kDefault); }
  ~DefaultFloatEnvironment() { set(saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__) || defined(__i386__)
  using Control = unsigned int;
  static constexpr Control kDefault = 0x1F80;
  static Control get() noexcept { return _mm_getcsr(); }
  static void set(Control control) noexcept { _mm_setcsr(control); }
#elif defined(__aarch64__)
  using Control = std::uint64_t;
  static constexpr Control kDefault = 0;
  static Control get() noexcept {
    Control control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(Control control) noexcept { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = int;
  static constexpr Control kDefault = 0;
  static Control get() noexcept { return 0; }
  static void set(Control) noexcept {}
#endif

  const Control saved_;
};

}  // namespace mpembed::cpu
