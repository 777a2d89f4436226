// The rotation R = K D of a vector: signs, the fast Walsh-Hadamard transform of each power-of-two block, one dense Hartley pass per odd
// prime.
#pragma once
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

// One butterfly pass over distance h, and two passes (h, 2h) that load and store once. h >= kLanes.
inline void butterfly(float* x, int64_t n, int64_t h) {
  for (int64_t i = 0; i < n; i += 2 * h)
    for (int64_t j = i; j < i + h; j += kLanes) {
      const F32 a = load(x + j), b = load(x + j + h);
      store(x + j, a + b);
      store(x + j + h, a - b);
    }
}
inline void butterfly4(float* x, int64_t n, int64_t h) {
  for (int64_t i = 0; i < n; i += 4 * h)
    for (int64_t j = i; j < i + h; j += kLanes) {
      const F32 a = load(x + j), b = load(x + j + h), c = load(x + j + 2 * h), d = load(x + j + 3 * h);
      const F32 s = a + b, t = a - b, u = c + d, v = c - d;
      store(x + j, s + u);
      store(x + j + h, t + v);
      store(x + j + 2 * h, s - u);
      store(x + j + 3 * h, t - v);
    }
}

// Blocks smaller than a register.
inline void small_hadamard(float* x, int64_t n) {
  for (int64_t h = 1; h < n; h *= 2)
    for (int64_t i = 0; i < n; i += 2 * h)
      for (int64_t j = i; j < i + h; j++) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
}

// x <- H x for a power of two n, not normalized.
inline void hadamard(float* x, int64_t n) {
  if (n < kLanes) return small_hadamard(x, n);
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, hadamard_lanes(load(x + i)));
  int64_t h = kLanes;
  for (; 4 * h <= n; h *= 4) butterfly4(x, n, h);
  if (h < n) butterfly(x, n, h);
}

inline constexpr int kPrimeVector = 1024;  // largest prime whose column of registers fits the stack copy

// out_i = factor * sum_l T[i, l] x_l over q elements `stride` apart, for kLanes neighbours at once.
inline void hartley_lanes(const float* matrix, int q, float* x, int64_t stride, float factor) {
  alignas(64) float copy[kPrimeVector * kLanes];
  for (int l = 0; l < q; l++) store(copy + l * kLanes, load(x + l * stride));
  for (int i = 0; i < q; i++) {
    F32 even = set1(0), odd = set1(0);
    int l = 0;
    for (; l + 1 < q; l += 2) {
      even = fma(set1(matrix[i * q + l]), load(copy + l * kLanes), even);
      odd = fma(set1(matrix[i * q + l + 1]), load(copy + (l + 1) * kLanes), odd);
    }
    even = fma(set1(matrix[i * q + l]), load(copy + l * kLanes), even);  // q is odd
    store(x + i * stride, (even + odd) * set1(factor));
  }
}
inline void hartley_one(const float* matrix, int q, float* x, int64_t stride, float factor) {
  float copy[tqn::kMaxInputs / tqn::kTileCols];
  for (int l = 0; l < q; l++) copy[l] = x[l * stride];
  for (int i = 0; i < q; i++) {
    float total = 0;
    for (int l = 0; l < q; l++) total += matrix[i * q + l] * copy[l];
    x[i * stride] = factor * total;
  }
}

// x <- factor * (T_q applied across blocks of `stride`).
inline void hartley(const float* matrix, int q, float* x, int64_t n, int64_t stride, float factor) {
  for (int64_t block = 0; block < n; block += q * stride) {
    int64_t j = 0;
    if (q <= kPrimeVector)
      for (; j + kLanes <= stride; j += kLanes) hartley_lanes(matrix, q, x + block + j, stride, factor);
    for (; j < stride; j++) hartley_one(matrix, q, x + block + j, stride, factor);
  }
}

// x <- K x. The Hadamard normalization rides on the first dense pass, or on a pass of its own.
inline void mix(const RotationPlan& plan, float* x) {
  const int64_t block = int64_t(1) << plan.log2_block;
  for (int64_t i = 0; i < plan.n; i += block) hadamard(x + i, block);
  float factor = 1 / __builtin_sqrtf(float(block));
  int64_t stride = block;
  for (size_t p = 0; p < plan.primes.size(); p++) {
    const int q = plan.primes.data()[p];
    hartley(plan.hartley.data()[p].data(), q, x, plan.n, stride, factor);
    stride *= q;
    factor = 1;
  }
  if (plan.primes.size() == 0)
    for (int64_t i = 0; i < plan.n; i++) x[i] *= factor;
}

inline void rotate(const RotationPlan& plan, const float* x, float* out) {
  const float* signs = plan.signs.data();
  for (int64_t i = 0; i < plan.n; i++) out[i] = x[i] * signs[i];
  mix(plan, out);
}
inline void rotate_inverse(const RotationPlan& plan, const float* x, float* out) {
  if (out != x) std::memcpy(out, x, size_t(plan.n) * sizeof(float));
  mix(plan, out);
  const float* signs = plan.signs.data();
  for (int64_t i = 0; i < plan.n; i++) out[i] *= signs[i];
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
