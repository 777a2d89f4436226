// y = W x for unquantized W: dot products for few tokens, simdgroup matrices of floats for many.
#include "arguments.h"
#include "elements.h"
#include "epilogue.h"

namespace tq {
TQ_CONSTANT uint kSimdRows = kDenseRows / (kGemvThreads / 32);  // rows of a simdgroup
TQ_CONSTANT uint kDepth = 32;                                   // columns that gemm_dense multiplies at once
TQ_CONSTANT uint kPitch = kDepth + 4;                           // floats of a row in threadgroup memory
}  // namespace tq

using namespace tq;

#define TQ_DENSE_BUFFERS                                                                                                       \
  constant LinearArgs &a [[buffer(0)]], device const typename E::Stored *w [[buffer(1)]], device const float *x [[buffer(2)]], \
      device float *y [[buffer(3)]], device const float *bias [[buffer(4)]]

template <class E>
kernel void gemv_dense(TQ_DENSE_BUFFERS, TQ_IDS) {
  const uint row = group.x * kDenseRows + sg * kSimdRows, token = group.y * kDenseTokens;
  const bool whole = a.n_in % 4 == 0, whole_x = whole && a.x_stride % 4 == 0;
  float sums[kSimdRows * kDenseTokens];
  TQ_UNROLL
  for (uint i = 0; i < kSimdRows * kDenseTokens; i++) sums[i] = 0;
  for (uint column = 4 * lane; column < a.n_in; column += 4 * 32) {
    float4 in[kDenseTokens];
    TQ_UNROLL
    for (uint t = 0; t < kDenseTokens; t++)
      in[t] = four<Float32>(x + ulong(min(token + t, a.rows - 1)) * a.x_stride, column, a.n_in, whole_x);
    TQ_UNROLL
    for (uint r = 0; r < kSimdRows; r++) {
      const float4 weights = four<E>(w + ulong(min(row + r, a.n_out - 1)) * a.n_in, column, a.n_in, whole);
      TQ_UNROLL
      for (uint t = 0; t < kDenseTokens; t++)
        sums[r * kDenseTokens + t] += weights.x * in[t].x + weights.y * in[t].y + weights.z * in[t].z + weights.w * in[t].w;
    }
  }
  TQ_UNROLL
  for (uint i = 0; i < kSimdRows * kDenseTokens; i++) {
    const float sum = simd_sum(sums[i]);
    const uint r = row + i / kDenseTokens, t = token + i % kDenseTokens;
    if (lane == 0 && r < a.n_out && t < a.rows) write_output(a, y, bias, t, r, sum);
  }
}
TQ_INSTANCE(gemv_dense_f32, gemv_dense, Float32)
TQ_INSTANCE(gemv_dense_f16, gemv_dense, Float16)
TQ_INSTANCE(gemv_dense_bf16, gemv_dense, BFloat16)

// Four simdgroups: 32 rows x 16 tokens each.
template <class E>
kernel void gemm_dense(TQ_DENSE_BUFFERS, TQ_IDS) {
  TQ_SHARED(float, weights, kGemmRows * kPitch);
  TQ_SHARED(float, tokens, kGemmTokens * kPitch);
  TQ_SHARED(float, sums, kGemmRows * kGemmTokens);  // (tokens, rows)
  const uint first_row = group.x * kGemmRows, first_token = group.y * kGemmTokens;
  const uint row = sg % 2 * 32, token = sg / 2 * 16;
  const bool whole = a.n_in % 4 == 0, whole_x = whole && a.x_stride % 4 == 0;
  simdgroup_float8x8 acc[8];
  TQ_UNROLL
  for (int i = 0; i < 8; i++) acc[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint column = 0; column < a.n_in; column += kDepth) {
    for (uint i = tid; i < (kGemmRows + kGemmTokens) * (kDepth / 4); i += kGemmThreads) {
      const uint r = i / (kDepth / 4), c = i % (kDepth / 4) * 4, at = column + c;
      const bool is_weight = r < kGemmRows;
      float4 value = float4(0.0f);
      if (is_weight && at < a.n_in && first_row + r < a.n_out) value = four<E>(w + ulong(first_row + r) * a.n_in, at, a.n_in, whole);
      if (!is_weight && at < a.n_in && first_token + r - kGemmRows < a.rows)
        value = four<Float32>(x + ulong(first_token + r - kGemmRows) * a.x_stride, at, a.n_in, whole_x);
      threadgroup float* to = is_weight ? weights + r * kPitch + c : tokens + (r - kGemmRows) * kPitch + c;
      to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < kDepth; k += 8) {
      simdgroup_float8x8 x_part[2], w_part[4];
      TQ_UNROLL
      for (int t = 0; t < 2; t++) simdgroup_load(x_part[t], tokens + (token + 8 * uint(t)) * kPitch + k, kPitch);
      TQ_UNROLL
      for (int r = 0; r < 4; r++) simdgroup_load(w_part[r], weights + (row + 8 * uint(r)) * kPitch + k, kPitch, 0, true);
      TQ_UNROLL
      for (int i = 0; i < 8; i++) simdgroup_multiply_accumulate(acc[i], x_part[i / 4], w_part[i % 4], acc[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  TQ_UNROLL
  for (int i = 0; i < 8; i++) simdgroup_store(acc[i], sums + (token + 8 * uint(i / 4)) * kGemmRows + row + 8 * uint(i % 4), kGemmRows);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = tid; i < kGemmRows * kGemmTokens; i += kGemmThreads) {
    const uint t = first_token + i / kGemmRows, r = first_row + i % kGemmRows;
    if (t < a.rows && r < a.n_out) write_output(a, y, bias, t, r, sums[i]);
  }
}
TQ_INSTANCE(gemm_dense_f32, gemm_dense, Float32)
TQ_INSTANCE(gemm_dense_f16, gemm_dense, Float16)
TQ_INSTANCE(gemm_dense_bf16, gemm_dense, BFloat16)
