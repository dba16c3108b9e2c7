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
  int32_t place = MPE_NUM_OPTIMIZERS;
  for (; own_optimizer(place) != nullptr; ++place) {
    if (std::strcmp(own_optimizer(place)->name, given->name) != 0) continue;
    *number = place;
    return g_optimizers.entry(place)->is(*given) ? MPE_OK : MPE_ERR_VALUE;
  }
  const mpe_status status = g_optimizers.add(place, *given);
  if (status == MPE_OK) *number = place;
  return status;
}
}
