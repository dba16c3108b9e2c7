// The fused backward: a row's gradient summed in the contract's order, then one optimizer step.
#include "cuda/kernels.h"
#include "cuda/update_rows.cuh"

namespace mpembed {
namespace cuda {
namespace {

// Reserves consecutive blocks for each hot row. The order of the rows does not matter. admitted,
// fresh: or NULL; the slots of an admission are looked up again, and their pins taken back.
__global__ void begin_rows_kernel(const __grid_constant__ Update update, HotRows hot,
                                  const int32_t* admitted, int32_t* fresh) {
  const int64_t u = thread_index();
  const bool here = u < *update.unique.count;
  if (fresh != nullptr) {
    const int32_t slot = here ? admitted[u] : 0;
    const int32_t now = refreshed_slot(update.cache, update.unique, u, here, slot);
    if (here) fresh[u] = now;
    if (here && slot >= 0) unpin(update.cache, slot);
  }
  if (!here || hot.blocks == nullptr) return;
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
                  const mpe_unique* unique, const int32_t* slots, int32_t* fresh,
                  const mpe_found* found, mpe_error* nonfinite, void* stream) {
  MPE_TRY(check_state_formats(*group));
  const bool is_own = group->optimizer->kind >= MPE_NUM_OPTIMIZERS;
  OwnKernels own;
  if (is_own) MPE_TRY(find_own_kernels(*group, &own));
  const mpe_cache cache = group->cache != nullptr ? *group->cache : mpe_cache{};
  const mpe_optimizer& optimizer = *group->optimizer;
  const Update update{Tables(*group),
                      Rounding(*group),
                      cache,
                      optimizer.decay_mode,
                      optimizer.coefficients,
                      *unique,
                      fresh != nullptr ? fresh : slots,
                      fresh != nullptr && found != nullptr ? *found : mpe_found{},
                      Batches(gradients, n)};
  int64_t lookups = 0;
  for (int32_t b = 0; b < n; ++b) lookups += gradients[b].lookups->n;
  const int64_t hot_blocks = max_hot_blocks(lookups), stride = whole_chunks(group->dim);
  const int64_t hot_rows = hot_blocks > 0 ? lookups : 0;
  // All workspace is allocated first, so that a failure changes nothing.
  Workspace workspace(stream);
  const auto blocks = workspace.plan<int32_t>(hot_blocks > 0 ? 1 : 0);
  const auto row_block = workspace.plan<int32_t>(hot_rows);
  const auto block_row = workspace.plan<int32_t>(hot_blocks);
  const auto sums = workspace.plan<float>(hot_blocks * stride);
  const auto scratch = workspace.plan<float>(
      group->dim > kRound ? scratch_rows(update.tables.states) * long_rows_at_once(lookups) * stride
                          : 0);
  MPE_TRY(workspace.acquire("update"));
  if (is_own) MPE_TRY(begin_own_update(*group, own, stream));
  const HotRows hot{hot_blocks > 0 ? workspace.get(blocks) : nullptr,
                    workspace.get(row_block),
                    workspace.get(block_row),
                    workspace.get(sums),
                    workspace.get(scratch),
                    stride};
  if (hot_blocks > 0) MPE_TRY(fill(hot.blocks, 0, sizeof(int32_t), stream));
  if (hot_blocks > 0 || fresh != nullptr) {
    MPE_TRY(launch("update", stream, lookups, begin_rows_kernel, update, hot, slots, fresh));
  }
  const auto rows = group->dim > kRound ? update_long_rows : update_short_rows;
  return rows(update, hot, optimizer.kind, is_own ? &own : nullptr, lookups, nonfinite, stream);
}

}  // namespace cuda
}  // namespace mpembed
