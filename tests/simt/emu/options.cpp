#include "emu/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "emu/fiber.h"

namespace simt {
namespace {

[[noreturn]] void refuse(const char* name, const char* value) {
  fprintf(stderr, "SIMT: %s=%s is not understood\n", name, value);
  exit(2);
}

double number(const char* name, double fallback, double least, double greatest) {
  const char* text = getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end;
  const double value = strtod(text, &end);
  if (*end != '\0' || !(value >= least && value <= greatest)) refuse(name, text);
  return value;
}

// Whether the variable has its second value; the first is the default.
bool choice(const char* name, const char* first, const char* second) {
  const char* text = getenv(name);
  if (text == nullptr || *text == '\0' || strcmp(text, first) == 0) return false;
  if (strcmp(text, second) != 0) refuse(name, text);
  return true;
}

Options read_environment() {
  Options o;
#if defined(SIMT_ASAN)
  const double stack_kib = 256;  // redzones make frames several times as large
#else
  const double stack_kib = 64;
#endif
  o.random = !choice("SIMT_SCHEDULE", "random", "lockstep");
  o.seed = static_cast<uint64_t>(number("SIMT_SEED", 1, 0, 9e15));
  o.preempt = static_cast<unsigned>(number("SIMT_PREEMPT", 0.125, 0, 1) * 256);
  o.resident = static_cast<size_t>(number("SIMT_RESIDENT", 4, 1, 1024));
  o.stack_bytes = static_cast<size_t>(number("SIMT_STACK", stack_kib, 16, 65536) / 4) * 4096;
  o.memory_bytes = static_cast<size_t>(number("SIMT_MEMORY", 8192, 0, 65536) * 1048576);
  o.fail_alloc = static_cast<int64_t>(number("SIMT_FAIL_ALLOC", 0, 0, 1e15));
  o.devices = static_cast<int>(number("SIMT_DEVICES", 1, 0, 16));
  o.multiprocessors = static_cast<int>(number("SIMT_SMS", 4, 1, 1024));
  o.timeout = number("SIMT_TIMEOUT", 300, 0, 1e9);
  o.log = choice("SIMT_LOG", "0", "1");
  o.abort_on_fault = !choice("SIMT_FAULT", "abort", "error");
  o.pools = !choice("SIMT_POOLS", "1", "0");
  o.pageable = choice("SIMT_PAGEABLE", "0", "1");
  o.protect = choice("SIMT_PROTECT", "0", "1");
  return o;
}

}  // namespace

Options& options() {
  static Options o = read_environment();
  return o;
}

}  // namespace simt

extern "C" void simt_set_schedule(const char* schedule, uint64_t seed) {
  simt::Options& o = simt::options();
  if (schedule != nullptr) o.random = strcmp(schedule, "lockstep") != 0;
  o.seed = seed;
}

extern "C" void simt_fail_alloc(int64_t n) { simt::options().fail_alloc = n; }
