// y = W x where W is the matrix of an expert that only the device knows: groups of at most kMmaTokens rows share an expert, and a launch's
// list of strips runs over the groups that the router made, each strip multiplied as in gemv.cuh.
#pragma once
#include "dependent.h"
#include "gemv.cuh"

namespace tq::cuda {

static_assert(kGroupRows == kMmaTokens);

// Experts of another format than K stand in the list too; a launch of their own does them.
template <int K>
__global__ void __launch_bounds__(kGemvThreads, 3) experts_kernel(const __grid_constant__ ExpertProduct product) {
  const int steps = steps_of(product.shape), group_strips = product.count * product.shape.strips;
  release_dependents();
  await_inputs();
  const int64_t strips = int64_t(*product.n_groups) * group_strips;
  if (strips == 0) return;
  int64_t step, end;
  block_share(strips, steps, int(min(int64_t(steps), gridDim.x / strips)), step, end);
  LoadedTable table;
  while (step < end) {
    StripPart part = first_part(step, end, steps);
    const int strip = part.strip, m = strip % group_strips / product.shape.strips;
    const ExpertGroup group = product.groups[strip / group_strips];
    const PackedView w = product.matrix[m][group.expert];
    part.strip = strip % product.shape.strips;
    if (w.k == K) {
      OutputView out;
      out.y = product.y[m] + int64_t(group.first) * w.n_out, out.ldy = w.n_out;
      multiply_strip<K, 1>(w, rows_of(product.in, group.first, group.count), out, part,
                           product.split.sums + int64_t(strip) * kMmaTokens * tqn::kTileRows, product.split.arrived + strip, table);
    }
    step += part.count;
  }
}

template <int K>
void launch_experts_format(const ExpertProduct& product, cudaStream_t stream) {
  const int blocks = resident_blocks<experts_kernel<K>>(gemv_shared_bytes<K>());
  launch_dependent("experts", experts_kernel<K>, dim3(unsigned(blocks)), kGemvThreads, gemv_shared_bytes<K>(), stream, product);
}

}  // namespace tq::cuda
