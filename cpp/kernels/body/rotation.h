// The rotation R = K D of a vector: signs, the fast Walsh-Hadamard transform of each power-of-two block, one dense Hartley pass per odd
// prime.
#pragma once
#include "kernels/body/dispatch.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

// log2(R) butterfly stages among R registers.
template <int R>
inline void butterflies(F32* v) {
  for (int d = 1; d < R; d *= 2)
    for (int i = 0; i < R; i++) {
      if (i & d) continue;
      const F32 a = v[i], b = v[i + d];
      v[i] = a + b;
      v[i + d] = a - b;
    }
}

// The stages of distances h, 2 h .. R h / 2; h >= kLanes.
template <int R>
inline void butterfly_pass(float* x, int64_t n, int64_t h) {
  for (int64_t i = 0; i < n; i += R * h)
    for (int64_t j = i; j < i + h; j += kLanes) {
      F32 v[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) v[r] = load(x + j + r * h);
      butterflies<R>(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) store(x + j + r * h, v[r]);
    }
}

// out = the stages of all distances below R * kLanes of factor * signs * x; signs null: all 1.
template <int R>
inline void first_pass(const float* x, const float* signs, float factor, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += R * kLanes) {
    F32 v[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const int64_t at = i + r * kLanes;
      v[r] = hadamard_lanes(load(x + at) * (signs ? load(signs + at) * set1(factor) : set1(factor)));
    }
    butterflies<R>(v);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(out + i + r * kLanes, v[r]);
  }
}

// Blocks smaller than a register.
inline void small_hadamard(const float* in, const float* signs, float factor, float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = in[i] * (signs ? signs[i] : 1.f) * factor;
  for (int64_t h = 1; h < n; h *= 2)
    for (int64_t i = 0; i < n; i += 2 * h)
      for (int64_t j = i; j < i + h; j++) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
}

// out = factor * H (signs * x) for a power of two n; x may be out.
inline void hadamard(const float* x, const float* signs, float factor, float* out, int64_t n) {
  const int64_t registers = n / kLanes;
  if (registers == 0) return small_hadamard(x, signs, factor, out, n);
  if (registers == 1) return first_pass<1>(x, signs, factor, out, n);
  if (registers == 2) return first_pass<2>(x, signs, factor, out, n);
  if (registers == 4) return first_pass<4>(x, signs, factor, out, n);
  first_pass<8>(x, signs, factor, out, n);
  int64_t h = 8 * kLanes;
  for (; 8 * h <= n; h *= 8) butterfly_pass<8>(out, n, h);
  if (4 * h <= n) return butterfly_pass<4>(out, n, h);
  if (2 * h <= n) butterfly_pass<2>(out, n, h);
}

inline constexpr int kPrimeVector = 512;  // largest prime whose column of registers fits the stack copy

// I of the q outputs for V registers of neighbours: out_i = sum_l T[i, l] x_l. copy: (q, V) registers.
template <int I, int V>
inline void hartley_rows(const float* matrix, int q, const float* copy, float* out, int64_t stride) {
  F32 sums[I][V];
  for (auto& row : sums)
    for (auto& lane : row) lane = set1(0);
  for (int l = 0; l < q; l++)
    for (int i = 0; i < I; i++)
      for (int v = 0; v < V; v++) sums[i][v] = fma(set1(matrix[i * q + l]), load(copy + (l * V + v) * kLanes), sums[i][v]);
  for (int i = 0; i < I; i++)
    for (int v = 0; v < V; v++) store(out + i * stride + v * kLanes, sums[i][v]);
}
template <int V>
inline void hartley_lanes(const float* matrix, int q, float* x, int64_t stride) {
  alignas(64) float copy[kPrimeVector * V * kLanes];
  for (int l = 0; l < q; l++)
    for (int v = 0; v < V; v++) store(copy + (l * V + v) * kLanes, load(x + l * stride + v * kLanes));
  for_token_groups<4>(q, [&](auto group, int64_t i) { hartley_rows<group.size, V>(matrix + i * q, q, copy, x + i * stride, stride); });
}
inline void hartley_one(const float* matrix, int q, float* x, int64_t stride) {
  float copy[tqn::kMaxInputs / tqn::kTileCols];
  for (int l = 0; l < q; l++) copy[l] = x[l * stride];
  for (int i = 0; i < q; i++) {
    float total = 0;
    for (int l = 0; l < q; l++) total += matrix[i * q + l] * copy[l];
    x[i * stride] = total;
  }
}

// x <- T_q applied across blocks of `stride`.
inline void hartley(const float* matrix, int q, float* x, int64_t n, int64_t stride) {
  for (int64_t block = 0; block < n; block += q * stride) {
    int64_t j = 0;
    for (; q <= kPrimeVector && j + 2 * kLanes <= stride; j += 2 * kLanes) hartley_lanes<2>(matrix, q, x + block + j, stride);
    for (; q <= kPrimeVector && j + kLanes <= stride; j += kLanes) hartley_lanes<1>(matrix, q, x + block + j, stride);
    for (; j < stride; j++) hartley_one(matrix, q, x + block + j, stride);
  }
}

// out = K (signs * x), signs null: K x; x may be out.
inline void mix(const RotationPlan& plan, const float* x, const float* signs, float* out) {
  const int64_t block = int64_t(1) << plan.log2_block;
  const float factor = 1 / __builtin_sqrtf(float(block));
  for (int64_t i = 0; i < plan.n; i += block) hadamard(x + i, signs ? signs + i : nullptr, factor, out + i, block);
  int64_t stride = block;
  for (size_t p = 0; p < plan.primes.size(); p++) {
    const int q = plan.primes.data()[p];
    hartley(plan.hartley.data()[p].data(), q, out, plan.n, stride);
    stride *= q;
  }
}

inline void rotate(const RotationPlan& plan, const float* x, float* out) { mix(plan, x, plan.signs.data(), out); }
inline void rotate_inverse(const RotationPlan& plan, const float* x, float* out) {
  mix(plan, x, nullptr, out);
  const float* signs = plan.signs.data();
  for (int64_t i = 0; i < plan.n; i++) out[i] *= signs[i];
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
