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

// What a state of N registers of columns holds for a key; even and odd rows are summed apart, so that sums wait less for each other.
template <int N>
inline void known_values(const float* state, int64_t stride, int key_dim, const float* k, F32 (&even)[N], F32 (&odd)[N]) {
  for (int j = 0; j < N; j++) even[j] = odd[j] = set1(0);
  int i = 0;
  for (; i + 2 <= key_dim; i += 2)
    for (int j = 0; j < N; j++) {
      even[j] = fma(load(state + i * stride + j * kLanes), set1(k[i]), even[j]);
      odd[j] = fma(load(state + (i + 1) * stride + j * kLanes), set1(k[i + 1]), odd[j]);
    }
  for (; i < key_dim; i++)
    for (int j = 0; j < N; j++) even[j] = fma(load(state + i * stride + j * kLanes), set1(k[i]), even[j]);
}

// A row of the state: changed, and its parts of the result and of what the next token's key will find there.
template <int N>
inline void change_row(float* state, float k, float q, float next, F32 decay, const F32 (&delta)[N], F32 (&result)[N], F32 (&known)[N]) {
  for (int j = 0; j < N; j++) {
    const F32 updated = fma(set1(k), delta[j], decay * load(state + j * kLanes));
    store(state + j * kLanes, updated);
    result[j] = fma(updated, set1(q), result[j]);
    known[j] = fma(updated, set1(next), known[j]);
  }
}

// One pass over the state a token: the pass that changes it also reads it for the next token, in the order of known_values(), so that cuts
// between tokens do not show.
template <int N>
inline void delta_columns(float* state, int64_t stride, int key_dim, const DeltaRows& x, int64_t column) {
  F32 even[N], odd[N], delta[N], result[N];
  known_values(state, stride, key_dim, x.k, even, odd);
  for (int64_t t = 0; t < x.n; t++) {
    const float *q = x.q + t * x.qkv_stride, *k = x.k + t * x.qkv_stride, *next = t + 1 < x.n ? k + x.qkv_stride : k;
    const F32 decay = set1(x.decay[t * x.gate_stride]), beta = set1(x.beta[t * x.gate_stride]);
    for (int j = 0; j < N; j++) delta[j] = beta * (load(x.v + t * x.qkv_stride + column + j * kLanes) - decay * (even[j] + odd[j]));
    for (int j = 0; j < N; j++) result[j] = even[j] = odd[j] = set1(0);
    int i = 0;
    for (; i + 2 <= key_dim; i += 2) {
      change_row(state + i * stride, k[i], q[i], next[i], decay, delta, result, even);
      change_row(state + (i + 1) * stride, k[i + 1], q[i + 1], next[i + 1], decay, delta, result, odd);
    }
    for (; i < key_dim; i++) change_row(state + i * stride, k[i], q[i], next[i], decay, delta, result, even);
    for (int j = 0; j < N; j++) store(x.out + t * x.out_stride + column + j * kLanes, result[j]);
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
  constexpr int kRegisters = 2;  // of columns: four sums for each of them stay in sixteen registers
  int64_t c = first;
  for (; c + kRegisters * kLanes <= last; c += kRegisters * kLanes) delta_columns<kRegisters>(state + c, stride, key_dim, x, c);
  for (; c + kLanes <= last; c += kLanes) delta_columns<1>(state + c, stride, key_dim, x, c);
  for (; c < last; c++) delta_column(state + c, stride, key_dim, x, c);
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
