// Reductions over a block of at most 1024 threads; every thread gets the result.
#pragma once
#include "epilogue.cuh"

namespace tq::cuda {

template <class Combine>
__device__ inline float block_reduce(float x, float identity, Combine&& combine) {
  __shared__ float parts[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = combine(x, __shfl_xor_sync(~0u, x, d));
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  x = lane < warps ? parts[lane] : identity;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = combine(x, __shfl_xor_sync(~0u, x, d));
  __syncthreads();
  return x;
}

__device__ inline float block_sum(float x) {
  return block_reduce(x, 0.f, [](float a, float b) { return a + b; });
}
__device__ inline float block_max(float x) {
  return block_reduce(x, 0.f, [](float a, float b) { return fmaxf(a, b); });
}

__device__ inline float rms_factor(const float* x, int n, float eps) {
  float squares = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) squares += x[i] * x[i];
  return rsqrtf(block_sum(squares) / float(n) + eps);
}

}  // namespace tq::cuda
