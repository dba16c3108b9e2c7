// The list of optimizers of the user's own that the CPU's kernels and the C API know.
#include "own_optimizers.h"

#include <cstring>
#include <mutex>

#include "mpembed/api.h"

namespace mpembed {
namespace {

OwnOptimizers g_optimizers;
std::mutex g_adding;

bool is_taken(const char* name) {
#define MPE_IS_NAME(id, own, type) || std::strcmp(name, #own) == 0
  return false MPE_OPTIMIZERS(MPE_IS_NAME);
#undef MPE_IS_NAME
}

}  // namespace

const mpe_own_optimizer* own_optimizer(int32_t kind) { return g_optimizers.find(kind); }

}  // namespace mpembed

extern "C" {

MPE_EXPORT mpe_status mpe_register_optimizer(const mpe_own_optimizer* given, int32_t* number) {
  using namespace mpembed;
  if (is_taken(given->name)) return MPE_ERR_VALUE;
  const std::lock_guard<std::mutex> lock(g_adding);
  int32_t next = MPE_NUM_OPTIMIZERS;
  for (; own_optimizer(next) != nullptr; ++next) {
    if (std::strcmp(own_optimizer(next)->name, given->name) == 0) return MPE_ERR_VALUE;
  }
  const mpe_status status = g_optimizers.add(next, *given);
  if (status == MPE_OK) *number = next;
  return status;
}
}
