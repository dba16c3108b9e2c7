// Runs every case, or those whose name is an argument; fails if a check does, or if there is none.
#include "check.h"

#include <cstring>

int main(int argc, char** argv) {
  int ran = 0;
  for (const check::Case& c : check::cases) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], c.name) == 0;
    if (!wanted) continue;
    const int before = check::failures;
    c.run();
    std::printf("%s %s\n", check::failures == before ? "ok" : "FAILED", c.name);
    ++ran;
  }
  std::printf("%d cases, %d checks failed\n", ran, check::failures);
  return ran > 0 && check::failures == 0 ? 0 : 1;
}
