// A C++ test: CASE(name) { CHECK(...); } in any file, all run by check.cpp. A third-party framework
// would have to be fetched, which needs more than a compiler and Python's packages.
#pragma once

#include <cstdio>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case> cases;
inline int failures = 0;

inline bool add(const char* name, void (*run)()) {
  cases.push_back({name, run});
  return true;
}

inline void that(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  ++failures;
  std::printf("%s:%d: %s does not hold\n", file, line, what);
}

}  // namespace check

#define CASE(name)                                          \
  static void name();                                       \
  static const bool added_##name = check::add(#name, name); \
  static void name()
#define CHECK(...) check::that((__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
