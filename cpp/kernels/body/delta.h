// The gated delta net: its convolution, and its recurrence token by token. A block of a state's columns stays in the first cache while the
// tokens pass, and columns do not see each other: the result depends neither on how a prompt is cut nor on who computes which columns.
#pragma once
#include "kernels/body/math.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline void convolve(const float* const* rows, int taps, const float* weights, int64_t stride, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32 total = set1(0);
    for (int tap = 0; tap < taps; tap++) total = fma(load(weights + tap * stride + i), load(rows[tap] + i), total);
    store(out + i, total * sigmoid(total));
  }
  for (; i < n; i++) {
    float total = 0;
    for (int tap = 0; tap < taps; tap++) total += weights[tap * stride + i] * rows[tap][i];
    out[i] = total / (1 + __builtin_expf(-total));
  }
}

// N registers of columns, from the state's first row of them on; even and odd rows are summed apart, so that sums wait less for each other.
template <int N>
inline void delta_columns(float* state, int64_t stride, int key_dim, const DeltaRows& x, int64_t column) {
  for (int64_t t = 0; t < x.n; t++) {
    const float *q = x.q + t * x.qkv_stride, *k = x.k + t * x.qkv_stride;
    const F32 decay = set1(x.decay[t * x.gate_stride]), beta = set1(x.beta[t * x.gate_stride]);
    F32 even[N], odd[N], delta[N];
    for (int j = 0; j < N; j++) even[j] = odd[j] = set1(0);
    int i = 0;
    for (; i + 2 <= key_dim; i += 2)
      for (int j = 0; j < N; j++) {
        even[j] = fma(load(state + i * stride + j * kLanes), set1(k[i]), even[j]);
        odd[j] = fma(load(state + (i + 1) * stride + j * kLanes), set1(k[i + 1]), odd[j]);
      }
    for (; i < key_dim; i++)
      for (int j = 0; j < N; j++) even[j] = fma(load(state + i * stride + j * kLanes), set1(k[i]), even[j]);
    for (int j = 0; j < N; j++) delta[j] = beta * (load(x.v + t * x.qkv_stride + column + j * kLanes) - decay * (even[j] + odd[j]));
    for (int j = 0; j < N; j++) even[j] = set1(0);
    for (i = 0; i < key_dim; i++)
      for (int j = 0; j < N; j++) {
        float* at = state + i * stride + j * kLanes;
        const F32 updated = fma(set1(k[i]), delta[j], decay * load(at));
        store(at, updated);
        even[j] = fma(updated, set1(q[i]), even[j]);
      }
    for (int j = 0; j < N; j++) store(x.out + t * x.out_stride + column + j * kLanes, even[j]);
  }
}

inline void delta_column(float* state, int64_t stride, int key_dim, const DeltaRows& x, int64_t column) {
  for (int64_t t = 0; t < x.n; t++) {
    const float *q = x.q + t * x.qkv_stride, *k = x.k + t * x.qkv_stride;
    const float decay = x.decay[t * x.gate_stride];
    float known = 0, result = 0;
    for (int i = 0; i < key_dim; i++) known += state[i * stride] * k[i];
    const float delta = x.beta[t * x.gate_stride] * (x.v[t * x.qkv_stride + column] - decay * known);
    for (int i = 0; i < key_dim; i++) {
      state[i * stride] = state[i * stride] * decay + k[i] * delta;
      result += state[i * stride] * q[i];
    }
    x.out[t * x.out_stride + column] = result;
  }
}

inline void delta_rule(float* state, int64_t stride, int key_dim, int64_t first, int64_t last, const DeltaRows& x) {
  constexpr int kRegisters = kLanes >= 16 ? 2 : 4;  // of columns: 32 of them are 16 KiB where keys have 128 elements
  int64_t c = first;
  for (; c + kRegisters * kLanes <= last; c += kRegisters * kLanes) delta_columns<kRegisters>(state + c, stride, key_dim, x, c);
  for (; c + kLanes <= last; c += kLanes) delta_columns<1>(state + c, stride, key_dim, x, c);
  for (; c < last; c++) delta_column(state + c, stride, key_dim, x, c);
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
