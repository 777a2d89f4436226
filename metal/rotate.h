// The rotation of one vector by one thread-group, in place: Hadamard passes of up to four bits held in registers, then one pass for each
// odd prime. Vectors are stored at padded() places. P: a pointer to threadgroup memory or, with Wide, to a device's.
#pragma once
#include "arguments.h"
#include "kernel.h"

namespace tq {
using namespace metal_args;

// All threads see what was written to the vector.
template <bool Wide>
inline void settle() {
  if (Wide)
    threadgroup_barrier(mem_flags::mem_device);
  else
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Bits [bit, bit + R) of the index.
template <int R, bool Wide, class P>
inline void hadamard_pass(P x, uint n, uint bit, uint tid, uint threads) {
  for (uint item = tid; item < n >> R; item += threads) {
    const uint low = item & ((1u << bit) - 1), first = (item >> bit << (bit + R)) | low;
    float v[1 << R];
    TQ_UNROLL
    for (int i = 0; i < 1 << R; i++) v[i] = x[padded(first + (uint(i) << bit))];
    TQ_UNROLL
    for (int d = 1; d < 1 << R; d *= 2) {
      TQ_UNROLL
      for (int i = 0; i < 1 << R; i++) {
        if (i & d) continue;
        const float a = v[i], b = v[i + d];
        v[i] = a + b, v[i + d] = a - b;
      }
    }
    TQ_UNROLL
    for (int i = 0; i < 1 << R; i++) x[padded(first + (uint(i) << bit))] = v[i];
  }
  settle<Wide>();
}

// T_q across elements `stride` apart, from x to y, which may be the same for a small prime.
template <int Q, bool Wide, class P>
inline void small_hartley_pass(P x, uint n, uint stride, device const float* matrix, uint tid, uint threads) {
  for (uint item = tid; item < n / Q; item += threads) {
    const uint first = item / stride * (stride * Q) + item % stride;
    float v[Q];
    TQ_UNROLL
    for (int j = 0; j < Q; j++) v[j] = x[padded(first + uint(j) * stride)];
    TQ_UNROLL
    for (int i = 0; i < Q; i++) {
      float sum = 0;
      TQ_UNROLL
      for (int j = 0; j < Q; j++) sum += matrix[i * Q + j] * v[j];
      x[padded(first + uint(i) * stride)] = sum;
    }
  }
  settle<Wide>();
}
template <bool Wide, class P>
inline void hartley_pass(P x, P y, uint n, uint stride, uint q, device const float* matrix, uint tid, uint threads) {
  for (uint item = tid; item < n; item += threads) {
    const uint column = item % stride, i = item / stride % q, first = item / (stride * q) * (stride * q) + column;
    float sum = 0;
    for (uint j = 0; j < q; j++) sum += matrix[i * q + j] * x[padded(first + j * stride)];
    y[padded(item)] = sum;
  }
  settle<Wide>();
}

// x <- K x but for hadamard_factor(); returns where the result is: x or, after a prime above kSmallPrime, other. All threads, after a
// barrier; ends with one.
template <bool Wide, class P>
inline P mix(constant RotationArgs& r, device const float* hartley, P x, P other, uint n, uint tid, uint threads) {
  uint bit = 0;
  for (; r.log2_block - bit >= 4; bit += 4) hadamard_pass<4, Wide>(x, n, bit, tid, threads);
  if (r.log2_block - bit == 3) hadamard_pass<3, Wide>(x, n, bit, tid, threads);
  if (r.log2_block - bit == 2) hadamard_pass<2, Wide>(x, n, bit, tid, threads);
  if (r.log2_block - bit == 1) hadamard_pass<1, Wide>(x, n, bit, tid, threads);
  uint stride = 1u << r.log2_block;
  for (uint p = 0; p < r.n_primes; p++) {
    const uint q = r.primes[p];
    if (q == 3) {
      small_hartley_pass<3, Wide>(x, n, stride, hartley, tid, threads);
    } else if (q == 5) {
      small_hartley_pass<5, Wide>(x, n, stride, hartley, tid, threads);
    } else if (q == 7) {
      small_hartley_pass<7, Wide>(x, n, stride, hartley, tid, threads);
    } else {
      hartley_pass<Wide>(x, other, n, stride, q, hartley, tid, threads);
      const P swap = x;
      x = other, other = swap;
    }
    stride *= q, hartley += q * q;
  }
  return x;
}

inline float hadamard_factor(constant RotationArgs& r) { return 1.0f / sqrt(float(1u << r.log2_block)); }

}  // namespace tq
