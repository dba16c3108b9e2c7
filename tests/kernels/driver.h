// A program of checks, of which a test runs one by its name in a process of its own; drivers.py
// builds it. Exits 0 if the check holds, 1 at the first condition that does not.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#define CHECK(condition)                                                         \
  do {                                                                           \
    if (!(condition)) {                                                          \
      std::fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
      std::exit(1);                                                              \
    }                                                                            \
  } while (0)

struct Check {
  const char* name;
  void (*run)();
};

template <int kChecks>
int run_check(const Check (&checks)[kChecks], int argc, char** argv) {
  for (const Check& check : checks) {
    if (argc == 2 && std::strcmp(argv[1], check.name) == 0) {
      check.run();
      return 0;
    }
  }
  std::fprintf(stderr, "no such check\n");
  return 2;
}
