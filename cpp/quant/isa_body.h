// The bodies, written once over two vocabularies: V, float vectors (kLanes, kSums, load, all, store, +, multiply_add), and I, vectors of
// int32 (kLanes, load, store, +, min; spread<k>: lane i = p[i >> k]; pair: a step's slope and weight in every lane; distance: of the pairs
// of values and squares from p on, value * slope + square * weight).
// Nothing of the standard library is instantiated here: the linker may keep any one unit's copy, whatever its instruction set.
#pragma once
#include <cstring>

#include "quant/isa.h"

namespace tq::quant {

template <int k, class I, class Pair>
inline void forward_step(const ValuePair* values, Pair pair, const int32_t* costs, int32_t* out) {
  constexpr int kBranches = 1 << k, kCount = cost_count(k), kPlane = kCount / kBranches;
  for (int u = 0; u < kCount; u += I::kLanes) {
    I best = I::template spread<k>(costs + (u >> k)) + I::distance(values + u, pair);
    for (int h = 1; h < kBranches; h++)
      best = min(best, I::template spread<k>(costs + h * kPlane + (u >> k)) + I::distance(values + h * kCount + u, pair));
    best.store(out + u);
  }
}

template <int k, class I>
void forward_pass(const ValuePair* values, const tqn::StepCost* step, int steps, int32_t* costs) {
  for (int i = 0; i < steps; i++, costs += cost_count(k)) forward_step<k, I>(values, I::pair(step[i]), costs, costs + cost_count(k));
}

// V::kSums vectors of rows by four columns are summed in registers.
template <class V>
void add_errors(const float* errors, const float* u, int64_t stride, int64_t count, float* sum) {
  constexpr int kRows = tqn::kTileRows, kCols = tqn::kTileCols;
  for (int r = 0; r < kRows; r += V::kSums * V::kLanes) {
    V s[V::kSums][kCols];
    for (int v = 0; v < V::kSums; v++)
      for (int c = 0; c < kCols; c++) s[v][c] = V::load(sum + c * kRows + r + v * V::kLanes);
    for (int64_t i = 0; i < count; i++)
      for (int v = 0; v < V::kSums; v++) {
        const V e = V::load(errors + i * kRows + r + v * V::kLanes);
        for (int c = 0; c < kCols; c++) s[v][c] = multiply_add(e, V::all(u[i * stride + c]), s[v][c]);
      }
    for (int v = 0; v < V::kSums; v++)
      for (int c = 0; c < kCols; c++) s[v][c].store(sum + c * kRows + r + v * V::kLanes);
  }
}

// c[0..4) -= a[0..4) b, rows of 64 and of 16 columns; the compiler cuts the wide vectors to what the instruction set has.
template <class V>
inline void subtract_product_4x16(const double* a, const double* b, int64_t stride, double* c) {
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles sum[4][2] = {};
  for (int k = 0; k < kFactorPanel; k++) {
    Doubles b0, b1;
    std::memcpy(&b0, b + 16 * k, sizeof b0);
    std::memcpy(&b1, b + 16 * k + 8, sizeof b1);
    for (int r = 0; r < 4; r++) sum[r][0] += a[r * stride + k] * b0, sum[r][1] += a[r * stride + k] * b1;
  }
  for (int r = 0; r < 4; r++)
    for (int j = 0; j < 16; j++) c[r * stride + j] -= sum[r][j / 8][j % 8];
}

template <class V>
void subtract_product(const double* a, const double* b, int64_t stride, double* c) {
  for (int j0 = 0; j0 < kFactorPanel; j0 += 16) {
    double transposed[kFactorPanel * 16];
    for (int j = 0; j < 16; j++)
      for (int k = 0; k < kFactorPanel; k++) transposed[16 * k + j] = b[(j0 + j) * stride + k];
    for (int i = 0; i < kFactorPanel; i += 4) subtract_product_4x16<V>(a + i * stride, transposed, stride, c + i * stride + j0);
  }
}

template <class V, class I>
constexpr Isa isa_of(std::string_view name) {
  return {name, {forward_pass<1, I>, forward_pass<2, I>, forward_pass<3, I>, forward_pass<4, I>}, add_errors<V>, subtract_product<V>};
}

}  // namespace tq::quant
