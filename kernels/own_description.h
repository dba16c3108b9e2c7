// What an optimizer of the user's own must be, and what it says of itself. Compiled behind its
// source, for the CPU and by NVRTC; mpe_own::Optimizer is its struct.
#pragma once

#include "mpembed/optim/common.h"

namespace mpembed {
namespace own {

using Optimizer = mpe_own::Optimizer;

static_assert(Optimizer::kNumStates >= 0 && Optimizer::kNumStates <= MPE_MAX_STATES,
              "an optimizer has two states at most: see kNumStates");

template <class T, size_t n>
constexpr int length(const T (&)[n]) {
  return static_cast<int>(n);
}

// How many states are listed; a misspelt kNumStates would be the base's, which has none.
template <class Kind, class = void>
constexpr int kListedStates = 0;
template <class Kind>
constexpr int kListedStates<Kind, decltype(void(Kind::kStates))> = length(Kind::kStates);
static_assert(kListedStates<Optimizer> == Optimizer::kNumStates,
              "kStates must have kNumStates entries");
static_assert(kRowStates<Optimizer> <= 1, "one state at most may be of a value a row");
static_assert(Optimizer::kSquares == (kRowStates<Optimizer> == 1),
              "kSquares and a state of a value a row go together: scale() alone gets that state");

template <class Kind>
constexpr bool are_finite() {
  if constexpr (Kind::kNumStates > 0) {
    for (const State& state : Kind::kStates) {
      if (!(state.initial >= -3.402823466e38f && state.initial <= 3.402823466e38f)) return false;
    }
  }
  return true;
}
static_assert(are_finite<Optimizer>(), "kStates: a state starts at a finite value");

constexpr int kNumParameters = length(Optimizer::kParameters) - 1;
static_assert(kNumParameters >= 0 && kNumParameters <= MPE_MAX_PARAMETERS - kOwnParameters,
              "an optimizer has six parameters of its own at most: see kParameters");
static_assert(Optimizer::kParameters[kNumParameters] == nullptr,
              "kParameters must end with nullptr");

// Lines of words, written as the source is compiled: mpembed/cuda/_description.py reads them out of
// the binary, whose kind does not matter then.
struct Text {
  static constexpr int kRoom = 1024;
  char text[kRoom];
  int size;

  constexpr Text() : text{}, size(0) {
    word("mpembed-own-optimizer");
    end_line();
    for (int i = 0; i < Optimizer::kNumStates; ++i) add_state<Optimizer>(i);
    for (int i = 0; i < kNumParameters; ++i) {
      word("parameter");
      word(Optimizer::kParameters[i]);
      end_line();
    }
    word("end");
    end_line();
  }

 private:
  template <class Kind>  // so that nothing is asked of an optimizer without states
  constexpr void add_state(int i) {
    if constexpr (Kind::kNumStates > 0) {
      word("state");
      word(Kind::kStates[i].name);
      number(static_cast<int32_t>(Kind::kStates[i].shape));
      value(Kind::kStates[i].initial);
      end_line();
    }
  }
  constexpr void put(char c) { text[size++] = c; }  // beyond the room it does not compile
  constexpr void end_line() { put('\n'); }
  constexpr void word(const char* letters) {
    for (; *letters != 0; ++letters) put(*letters);
    put(' ');
  }
  constexpr void number(int64_t n) {
    char digits[20] = {};
    int count = 0;
    if (n < 0) put('-');
    for (uint64_t rest = static_cast<uint64_t>(n < 0 ? -n : n); rest != 0 || count == 0;
         rest /= 10) {
      digits[count++] = static_cast<char>('0' + rest % 10);
    }
    while (count > 0) put(digits[--count]);
    put(' ');
  }
  // A finite float as a whole number and the power of two that it is multiplied with.
  constexpr void value(float x) {
    constexpr double kMost = 16777216.0;  // 2^24
    double rest = x;
    int exponent = 0;
    for (; rest > kMost || rest < -kMost; ++exponent) rest /= 2.0;
    for (; rest != static_cast<double>(static_cast<int64_t>(rest)); --exponent) rest *= 2.0;
    number(static_cast<int64_t>(rest));
    number(exponent);
  }
};

}  // namespace own
}  // namespace mpembed

#if defined(__CUDACC__)
#define MPE_OWN_SIDE __device__
#define MPE_OWN_EXPORT
#else
#define MPE_OWN_SIDE
#define MPE_OWN_EXPORT __attribute__((visibility("default")))
#endif

extern "C" {
extern MPE_OWN_EXPORT MPE_OWN_SIDE const mpembed::own::Text mpe_own_text;
MPE_OWN_SIDE const mpembed::own::Text mpe_own_text;
}
