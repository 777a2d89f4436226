// Rotary embedding of one head by one block, and what queries grow by in long contexts.
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

// The pair that a channel belongs to in rope(), the channel that it is turned with, and whether it is the pair's first.
struct Turn {
  int pair, other;
  bool first;
  __device__ Turn(const AttentionView& a, int channel) {
    const int half = a.rope_dims / 2;
    first = a.rope_pairs ? channel % 2 == 0 : channel < half;
    pair = a.rope_pairs ? channel / 2 : first ? channel : channel - half;
    other = a.rope_pairs ? channel ^ 1 : first ? channel + half : channel - half;
  }
};

__device__ inline float query_growth(const AttentionView& a, int row) {
  return 1 + a.growth.beta * log1pf(float(int64_t(a.batch.positions[row]) / a.growth.length));
}

// Behind rope(): an element is scaled by another thread than the one that turned it.
__device__ inline void grow_query(const AttentionView& a, int row, float* q) {
  const float scale = query_growth(a, row);
  __syncthreads();
  for (int i = threadIdx.x; i < a.shape.head_dim; i += blockDim.x) q[i] *= scale;
}

}  // namespace tq::cuda
