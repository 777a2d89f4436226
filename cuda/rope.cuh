// Rotary embedding of one head by one block.
#pragma once
#include "launch.h"

namespace tq::cuda {

__device__ inline void rope(const AttentionView& a, int row, float* x) {
  const int half = a.rope_dims / 2;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    const float c = a.cos[int64_t(row) * half + i], s = a.sin[int64_t(row) * half + i];
    float &p = x[a.rope_pairs ? 2 * i : i], &q = x[a.rope_pairs ? 2 * i + 1 : i + half];
    const float u = p, v = q;
    p = u * c - v * s, q = v * c + u * s;
  }
}

}  // namespace tq::cuda
