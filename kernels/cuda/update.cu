// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cuda/kernels.h"
#include "cuda/update_rows.cuh"

namespace mpembed {
namespace cuda {
namespace {

// Reserves consecutive blocks for each hot row. The order of the rows does not matter.
__global__ void hot_rows_kernel(const __grid_constant__ Update update, HotRows hot) {
  const int64_t u = thread_index();
  if (u >= *update.unique.count) return;
  const int64_t n = update.unique.starts[u + 1] - update.unique.starts[u];
  if (n <= kBlock) return;
  const int32_t blocks = static_cast<int32_t>((n + kBlock - 1) / kBlock);
  const int32_t first = atomicAdd(hot.blocks, blocks);
  hot.row_block[u] = first;
  for (int32_t i = 0; i < blocks; ++i) hot.block_row[first + i] = static_cast<int32_t>(u);
}

// One block: every thread sees the old count before it changes.
__global__ void coefficients_kernel(uint64_t* step, const mpe_parameters* tables, int64_t n,
                                    uint64_t* updates, float* coefficients) {
  const uint64_t count = *updates + 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    *updates = count;
    if (step != nullptr) ++*step;
  }
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
    const mpe_parameters& table = tables[t];
    if (table.optimizer < 0 || table.optimizer >= MPE_NUM_OPTIMIZERS) continue;
    float* to = coefficients + t * MPE_MAX_COEFFICIENTS;
    with_optimizer(table.optimizer, [&](auto optimizer) {
      decltype(optimizer)::coefficients(table.values, table.decay_mode, count, to);
    });
  }
}

}  // namespace

mpe_status begin_update(uint64_t* step, const mpe_parameters* tables, int64_t n, uint64_t* updates,
                        float* coefficients, void* stream) {
  return launch_blocks("begin_update", stream, 1, kThreads, coefficients_kernel, step, tables, n,
                       updates, coefficients);
}

mpe_status update(const mpe_group* group, const mpe_gradient* gradients, int32_t n,
                  const mpe_unique* unique, const int32_t* slots, mpe_error* nonfinite,
                  void* stream) {
  MPE_TRY(check_state_formats(*group));
  const bool is_own = group->optimizer->kind >= MPE_NUM_OPTIMIZERS;
  OwnKernels own;
  if (is_own) {
    MPE_TRY(find_own_kernels(*group, &own));
    MPE_TRY(begin_own_update(*group, own, stream));
  }
  const mpe_cache cache = group->cache != nullptr ? *group->cache : mpe_cache{};
  const mpe_optimizer& optimizer = *group->optimizer;
  const Update update{Tables(*group),         Rounding(*group), cache, optimizer.decay_mode,
                      optimizer.coefficients, *unique,          slots, Batches(gradients, n)};
  int64_t lookups = 0;
  for (int32_t b = 0; b < n; ++b) lookups += gradients[b].lookups->n;
  const int64_t hot_blocks = max_hot_blocks(lookups), stride = whole_chunks(group->dim);
  HotRows hot{};
  hot.stride = stride;
  Workspace workspace(stream);
  if (hot_blocks > 0) {
    const auto blocks = workspace.plan<int32_t>(1), row_block = workspace.plan<int32_t>(lookups),
               block_row = workspace.plan<int32_t>(hot_blocks);
    const auto sums = workspace.plan<float>(hot_blocks * stride);
    MPE_TRY(workspace.acquire("update"));
    hot.blocks = workspace.get(blocks);
    hot.row_block = workspace.get(row_block);
    hot.block_row = workspace.get(block_row);
    hot.sums = workspace.get(sums);
    MPE_TRY(fill(hot.blocks, 0, sizeof(int32_t), stream));
    MPE_TRY(launch("update", stream, lookups, hot_rows_kernel, update, hot));
  }
  const auto rows = group->dim > kRound ? update_long_rows : update_short_rows;
  return rows(update, hot, optimizer.kind, is_own ? &own : nullptr, lookups, nonfinite, stream);
}

}  // namespace cuda
}  // namespace mpembed
