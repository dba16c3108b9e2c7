// The fused backward of rows of more than 256 columns.
#include "cuda/update_rows.cuh"

namespace mpembed {
namespace cuda {

mpe_status update_long_rows(const Update& update, const HotRows& hot, int32_t optimizer,
                            const OwnKernels* own, int64_t n, mpe_error* nonfinite, void* stream) {
  return update_rows<true>(update, hot, optimizer, own, n, nonfinite, stream);
}

}  // namespace cuda
}  // namespace mpembed
