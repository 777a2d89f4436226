// The bodies, written once over a vocabulary V of float vectors: kLanes, kSums, load, all, store, +, min, multiply_add, runs, zip.
// Nothing of the standard library is instantiated here: the linker may keep any one unit's copy, whatever its instruction set.
#pragma once
#include <cstring>

#include "quant/isa.h"

namespace tq::quant {

// Vectors v[0..n) become the sequence v[0][0], v[1][0] ... v[n - 1][0], v[0][1], v[1][1] ...
template <int n, class V>
inline void interleave(V* v) {
  if constexpr (n > 1) {
    V even[n / 2], odd[n / 2];
    for (int i = 0; i < n / 2; i++) even[i] = v[2 * i], odd[i] = v[2 * i + 1];
    interleave<n / 2>(even);
    interleave<n / 2>(odd);
    for (int i = 0; i < n / 2; i++) V::zip(even[i], odd[i], v[2 * i], v[2 * i + 1]);
  }
}

template <int k, class V>
inline void forward_step(const float* distance, const uint32_t* shift, const float* costs, float* out) {
  constexpr int kBranches = 1 << k, kCount = cost_count(k), kPlane = kCount / kBranches, kRun = 64 / kBranches;
  for (int v = 0; v < kPlane; v += V::kLanes) {
    V best[kBranches];  // by residue r
    for (int h = 0; h < kBranches; h++) {
      const int w = h * kPlane + v;
      const V d = V::template runs<kRun>(distance + w / kRun);
      for (int r = 0; r < kBranches; r++) {
        const V cost = V::load(costs + ((uint32_t(w) + shift[r]) & (kCount - 1))) + d;
        best[r] = h ? min(best[r], cost) : cost;
      }
    }
    interleave<kBranches>(best);
    for (int r = 0; r < kBranches; r++) best[r].store(out + v * kBranches + r * V::kLanes);
  }
  std::memcpy(out + kCount, out, kCostPadding * sizeof(float));
}

template <int k, class V>
void forward_pass(const float* distance, int steps, const uint32_t* shift, float* costs) {
  for (int i = 0; i < steps; i++, distance += tqn::kCodebookSize, costs += cost_stride(k))
    forward_step<k, V>(distance, shift, costs, costs + cost_stride(k));
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

template <class V>
constexpr Isa isa_of(std::string_view name) {
  return {name, {forward_pass<1, V>, forward_pass<2, V>, forward_pass<3, V>, forward_pass<4, V>}, add_errors<V>, subtract_product<V>};
}

}  // namespace tq::quant
