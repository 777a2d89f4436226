// Sums and maxima over a thread-group: in the same order whatever the hardware does.
#pragma once
#include "kernel.h"

namespace tq {

// partial: (simdgroups) in threadgroup memory, free again on return. All threads; every one gets the result.
inline float block_sum(float x, threadgroup float* partial, uint threads, uint lane, uint sg) {
  x = simd_sum(x);
  if (lane == 0) partial[sg] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0;
  for (uint s = 0; s < threads / 32; s++) sum += partial[s];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return sum;
}
inline float block_max(float x, threadgroup float* partial, uint threads, uint lane, uint sg) {
  x = simd_max(x);
  if (lane == 0) partial[sg] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float most = partial[0];
  for (uint s = 1; s < threads / 32; s++) most = max(most, partial[s]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return most;
}

// 1 / sqrt(mean(x^2) + eps) of n values.
inline float rms_factor(device const float* x, uint n, float eps, threadgroup float* partial, uint threads, uint tid, uint lane, uint sg) {
  float squares = 0;
  for (uint i = tid; i < n; i += threads) squares += x[i] * x[i];
  return 1.0f / sqrt(block_sum(squares, partial, threads, lane, sg) / float(n) + eps);
}

}  // namespace tq
