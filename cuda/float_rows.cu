// Float dot products of rows, a warp a row of W and eight tokens: dense matrices over few tokens, and the float path of packed ones. Also S
// x.
#include <cuda_bf16.h>

#include "device.h"
#include "epilogue.cuh"

namespace tq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;

// Four neighbouring elements of a row as floats.
__device__ inline float4 four(const int8_t* p) {
  const char4 v = *reinterpret_cast<const char4*>(p);
  return make_float4(v.x, v.y, v.z, v.w);
}
__device__ inline float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float4 four(const __half* p) {
  const float2 a = __half22float2(reinterpret_cast<const __half2*>(p)[0]), b = __half22float2(reinterpret_cast<const __half2*>(p)[1]);
  return make_float4(a.x, a.y, b.x, b.y);
}
__device__ inline float4 four(const __nv_bfloat16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u), __uint_as_float(v.y << 16),
                     __uint_as_float(v.y & 0xFFFF0000u));
}

// Elements i to i + 3 of an input row of n, whose rows begin anywhere where n is no multiple of four.
__device__ inline float4 four_of(const float* row, int i, int n) {
  if (n % 4 == 0) return four(row + i);
  return make_float4(row[i], i + 1 < n ? row[i + 1] : 0.f, i + 2 < n ? row[i + 2] : 0.f, i + 3 < n ? row[i + 3] : 0.f);
}

// x: rows of n. All loads before the first sum, without a branch on the token between them: they wait together. Sums beyond the tokens
// mean nothing.
__device__ inline void add_products(const float4& a, const float* x, int i, int n, int tokens, float (&sums)[kTokens]) {
  float4 b[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; t++) b[t] = four_of(x + int64_t(min(t, tokens - 1)) * n, i, n);
#pragma unroll
  for (int t = 0; t < kTokens; t++) sums[t] += a.x * b[t].x + a.y * b[t].y + a.z * b[t].z + a.w * b[t].w;
}

struct RowScales {
  const uint16_t* row = nullptr;
  float all = 1;
  OutlierView outliers;
};

template <class T>
__global__ void __launch_bounds__(kWarps * 32)
    float_kernel(const char* weights, int64_t stride, int n_out, const float* x, const __grid_constant__ InputView in,
                 const __grid_constant__ RowScales scales, const __grid_constant__ OutputView out) {
  const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * kTokens;
  if (row >= n_out) return;
  const T* w = reinterpret_cast<const T*>(weights + row * stride);
  const int tokens = min(kTokens, in.rows - first);
  float sums[kTokens] = {};
  for (int i = 4 * lane; i < in.n_in; i += 4 * 32) {
    add_products(four(w + i), x + int64_t(first) * in.n_in, i, in.n_in, tokens, sums);
  }
  const float scale = scales.row ? scales.all * half_value(scales.row[row]) : 1.f;
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
    if (t >= tokens) break;
    float part = scale * sums[t];
    if (scales.outliers.ptr) part += outlier_part(scales.outliers, row, in.plain + int64_t(first + t) * in.n_in, lane);
    const float total = warp_sum(part);
    if (lane == 0) write_output(out, first + t, row, total);
  }
}

// The same for a matrix of few rows over few tokens, a block a row: a warp alone would wait for its loads one after the other.
template <class T>
__global__ void __launch_bounds__(kWarps * 32) narrow_kernel(const char* weights, int64_t stride, const float* x,
                                                             const __grid_constant__ InputView in, const __grid_constant__ OutputView out) {
  __shared__ float parts[kWarps][kTokens];
  const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.y * kTokens;
  const T* w = reinterpret_cast<const T*>(weights + row * stride);
  const int tokens = min(kTokens, in.rows - first);
  float sums[kTokens] = {};
#pragma unroll 4
  for (int i = 4 * threadIdx.x; i < in.n_in; i += 4 * kWarps * 32) {
    add_products(four(w + i), x + int64_t(first) * in.n_in, i, in.n_in, tokens, sums);
  }
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
    const float part = warp_sum(sums[t]);
    if (lane == 0) parts[warp][t] = part;
  }
  __syncthreads();
  if (int(threadIdx.x) >= tokens) return;
  float total = 0;
  for (int i = 0; i < kWarps; i++) total += parts[i][threadIdx.x];
  write_output(out, first + threadIdx.x, row, total);
}

template <class T>
void launch(const void* weights, int64_t stride, int n_out, const float* x, const InputView& in, const RowScales& scales,
            const OutputView& out, cudaStream_t stream) {
  const dim3 grid((n_out + kWarps - 1) / kWarps, (in.rows + kTokens - 1) / kTokens);
  if (!scales.row && int(grid.x * grid.y) < device_limits().processors / 2) {
    narrow_kernel<T><<<dim3(n_out, grid.y), kWarps * 32, 0, stream>>>(static_cast<const char*>(weights), stride, x, in, out);
    return check_launch("float_rows");
  }
  float_kernel<T><<<grid, kWarps * 32, 0, stream>>>(static_cast<const char*>(weights), stride, n_out, x, in, scales, out);
  check_launch("float_rows");
}

__global__ void __launch_bounds__(kWarps * 32)
    outlier_kernel(const __grid_constant__ PackedView m, const __grid_constant__ InputView in, const __grid_constant__ OutputView out) {
  const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= m.n_out) return;
  const int64_t token = blockIdx.y;
  const float sum = warp_sum(outlier_part(m.outliers, row, in.plain + token * in.n_in, lane));
  if (lane == 0) out.y[token * out.ldy + row] += out.alpha * sum;
}

}  // namespace

void float_rows(const DenseView& m, const float* x, const InputView& in, const OutputView& out, cudaStream_t stream) {
  switch (m.element) {
    case Element::f32:
      return launch<float>(m.data, m.stride, m.n_out, x, in, {}, out, stream);
    case Element::f16:
      return launch<__half>(m.data, m.stride, m.n_out, x, in, {}, out, stream);
    default:
      return launch<__nv_bfloat16>(m.data, m.stride, m.n_out, x, in, {}, out, stream);
  }
}

void float_rows_packed(const PackedView& m, const int8_t* values, const InputView& in, const OutputView& out, cudaStream_t stream) {
  launch<int8_t>(values, round_up(m.n_in, kRowAlign), m.n_out, in.rotated, in, {m.row_scale, m.scale, m.outliers}, out, stream);
}

void add_outliers(const PackedView& m, const InputView& in, const OutputView& out, cudaStream_t stream) {
  outlier_kernel<<<dim3((m.n_out + kWarps - 1) / kWarps, in.rows), kWarps * 32, 0, stream>>>(m, in, out);
  check_launch("add_outliers");
}

}  // namespace tq::cuda
