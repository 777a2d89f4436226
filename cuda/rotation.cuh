// The rotation R = K D of one vector by one block, in place: Hadamard passes of up to four bits held in registers, then one dense pass per
// odd prime. Vectors are stored with one float of padding after every 32, so that strided passes meet different banks.
#pragma once
#include "launch.h"

namespace tq::cuda {

// Threads of a block: a radix-16 pass over n values has n / 16 items.
inline constexpr int kRotateThreads = 1024;
inline int rotate_threads(int n) { return n > 8192 ? kRotateThreads : n > 2048 ? 512 : 256; }

__device__ constexpr inline int padded(int i) { return i + (i >> 5); }
constexpr inline int64_t padded_size(int64_t n) { return round_up(n + n / 32 + 1, 4); }

// Bits [bit, bit + R) of the index.
template <int R>
__device__ inline void hadamard_pass(float* x, int n, int bit) {
  for (int item = threadIdx.x; item < n >> R; item += blockDim.x) {
    const int low = item & ((1 << bit) - 1), first = (item >> bit << (bit + R)) | low;
    float v[1 << R];
#pragma unroll
    for (int i = 0; i < 1 << R; i++) v[i] = x[padded(first + (i << bit))];
#pragma unroll
    for (int d = 1; d < 1 << R; d *= 2)
#pragma unroll
      for (int i = 0; i < 1 << R; i++)
        if (!(i & d)) {
          const float a = v[i], b = v[i + d];
          v[i] = a + b, v[i + d] = a - b;
        }
#pragma unroll
    for (int i = 0; i < 1 << R; i++) x[padded(first + (i << bit))] = v[i];
  }
  __syncthreads();
}

// All passes from `bit` on.
__device__ inline void hadamard(float* x, int n, int bit, int log2_block) {
  for (; log2_block - bit >= 4; bit += 4) hadamard_pass<4>(x, n, bit);
  if (log2_block - bit == 3) hadamard_pass<3>(x, n, bit);
  if (log2_block - bit == 2) hadamard_pass<2>(x, n, bit);
  if (log2_block - bit == 1) hadamard_pass<1>(x, n, bit);
}

// T_q across elements `stride` apart, small primes in registers.
template <int Q>
__device__ inline void hartley_pass(float* x, int n, int stride, const float* matrix) {
  for (int item = threadIdx.x; item < n / Q; item += blockDim.x) {
    const int first = item / stride * (stride * Q) + item % stride;
    float v[Q];
#pragma unroll
    for (int j = 0; j < Q; j++) v[j] = x[padded(first + j * stride)];
#pragma unroll
    for (int i = 0; i < Q; i++) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < Q; j++) sum += matrix[i * Q + j] * v[j];
      x[padded(first + i * stride)] = sum;
    }
  }
  __syncthreads();
}

// Any prime, from x to y.
__device__ inline void hartley_pass(const float* x, float* y, int n, int stride, int q, const float* matrix) {
  constexpr int kOut = 4;  // outputs that share the loads of their column
  const int groups = (q + kOut - 1) / kOut;
  for (int item = threadIdx.x; item < n / q * groups; item += blockDim.x) {
    const int column = item % stride, rest = item / stride, first = rest / groups * (stride * q) + column, i0 = rest % groups * kOut;
    float sum[kOut] = {};
    for (int j = 0; j < q; j++) {
      const float v = x[padded(first + j * stride)];
#pragma unroll
      for (int i = 0; i < kOut; i++) sum[i] += matrix[min(i0 + i, q - 1) * q + j] * v;
    }
#pragma unroll
    for (int i = 0; i < kOut; i++)
      if (i0 + i < q) y[padded(first + (i0 + i) * stride)] = sum[i];
  }
  __syncthreads();
}

// The passes of a warp's kWarpBits lowest bits in registers: lane l holds values 8 l .. 8 l + 7 of 256 that follow each other.
inline constexpr int kLaneValues = 8, kWarpValues = kLaneValues * 32, kWarpBits = 8;
__device__ inline void hadamard_warp(float (&v)[kLaneValues]) {
#pragma unroll
  for (int d = 1; d < kLaneValues; d *= 2)
#pragma unroll
    for (int i = 0; i < kLaneValues; i++)
      if (!(i & d)) {
        const float a = v[i], b = v[i + d];
        v[i] = a + b, v[i + d] = a - b;
      }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float sign = threadIdx.x & d ? -1.f : 1.f;
#pragma unroll
    for (int i = 0; i < kLaneValues; i++) v[i] = fmaf(sign, v[i], __shfl_xor_sync(~0u, v[i], d));
  }
}

// x <- K x but for the factor hadamard_factor(r) and the passes below `bit`; returns where the result is: x or other. All threads, after a
// barrier; ends with one.
__device__ inline float* mix(const RotationView& r, float* x, float* other, int bit = 0) {
  hadamard(x, r.n, bit, r.log2_block);
  int stride = 1 << r.log2_block;
  for (int p = 0; p < r.n_primes; p++) {
    const int q = r.primes[p];
    if (q == 3)
      hartley_pass<3>(x, r.n, stride, r.hartley[p]);
    else if (q == 5)
      hartley_pass<5>(x, r.n, stride, r.hartley[p]);
    else if (q == 7)
      hartley_pass<7>(x, r.n, stride, r.hartley[p]);
    else {
      hartley_pass(x, other, r.n, stride, q, r.hartley[p]);
      float* const swap = x;
      x = other, other = swap;
    }
    stride *= q;
  }
  return x;
}

__device__ inline float hadamard_factor(const RotationView& r) { return rsqrtf(float(1 << r.log2_block)); }

// Where a block keeps its two vectors: shared memory while they fit, device scratch beyond.
inline int64_t vector_bytes(int64_t n) { return 2 * padded_size(n) * int64_t(sizeof(float)); }
inline bool vectors_are_shared(int64_t n, int64_t shared_limit) { return vector_bytes(n) <= shared_limit; }

}  // namespace tq::cuda
