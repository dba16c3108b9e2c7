// The fused backward of rows of up to 256 columns.
#include "cuda/update_rows.cuh"

namespace mpembed {
namespace cuda {

mpe_status update_short_rows(const Update& update, const HotRows& hot, int32_t optimizer,
                             const OwnKernels* own, int64_t n, mpe_error* nonfinite, void* stream) {
  return update_rows<false>(update, hot, optimizer, own, n, nonfinite, stream);
}

}  // namespace cuda
}  // namespace mpembed
