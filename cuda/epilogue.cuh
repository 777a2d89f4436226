// The end of a product: scales, bias, residual.
#pragma once
#include <cuda_fp16.h>

#include "launch.h"

namespace tq::cuda {

__device__ inline float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

__device__ inline void write_output(const OutputView& out, int64_t token, int row, float product) {
  float* y = out.y + token * out.ldy + row;
  const float value = out.alpha * (product + (out.bias ? out.bias[row] : 0.f));
  *y = out.add ? *y + value : value;
}

// The share of one of `lanes` lanes in row `row` of S x.
__device__ inline float outlier_part(const OutlierView& s, int row, const float* x, int lane, int lanes = 32) {
  float sum = 0;
  for (int i = s.ptr[row] + lane; i < s.ptr[row + 1]; i += lanes) sum += half_value(s.val[i]) * x[s.col16 ? int(s.col16[i]) : s.col32[i]];
  return sum;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

}  // namespace tq::cuda
