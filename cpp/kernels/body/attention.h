// One query head over a float16 or float32 cache, by blocks of positions with an online softmax.
#pragma once
#include "kernels/body/elements.h"
#include "kernels/body/lanes.h"
#include "kernels/body/vector.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kPositions = 64;  // of a block

template <class Element>
inline float key_score(const float* q, const typename Element::Type* k, int n) {
  F32 even = set1(0), odd = set1(0);
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = fma(load(q + i), Element::load(k + i), even);
    odd = fma(load(q + i + kLanes), Element::load(k + i + kLanes), odd);
  }
  float total = sum(even + odd);
  for (; i < n; i++) total += q[i] * Element::value(k[i]);
  return total;
}

// kLanes positions side by side, whose sums are then formed together.
template <class Element>
inline F32 key_scores(const float* q, const typename Element::Type* k, int64_t stride, int n) {
  F32 sums[kLanes];
  for (F32& lane : sums) lane = set1(0);
  for (int i = 0; i < n; i += kLanes) {
    const F32 part = load(q + i);
    for (int p = 0; p < kLanes; p++) sums[p] = fma(part, Element::load(k + p * stride + i), sums[p]);
  }
  return row_sums(sums);
}

template <class Element>
inline void block_scores(const AttentionShape& shape, const float* q, const typename Element::Type* k, int64_t stride, int count,
                         float* scores) {
  int i = 0;
  if (shape.head_dim % kLanes == 0)
    for (; i + kLanes <= count; i += kLanes)
      store(scores + i, set1(shape.scale) * key_scores<Element>(q, k + i * stride, stride, shape.head_dim));
  for (; i < count; i++) scores[i] = shape.scale * key_score<Element>(q, k + i * stride, shape.head_dim);
  if (shape.soft_cap > 0) soft_cap(scores, shape.soft_cap, count);
}

// out = factor * out + sum_i weight_i v_i, for N registers of channels at a time.
template <class Element, int N>
inline void add_value_registers(const float* weights, const typename Element::Type* v, int64_t stride, int count, float factor,
                                float* out) {
  F32 sums[N];
  for (int j = 0; j < N; j++) sums[j] = load(out + j * kLanes) * set1(factor);
  for (int i = 0; i < count; i++)
    for (int j = 0; j < N; j++) sums[j] = fma(set1(weights[i]), Element::load(v + i * stride + j * kLanes), sums[j]);
  for (int j = 0; j < N; j++) store(out + j * kLanes, sums[j]);
}
template <class Element>
inline void add_values(const float* weights, const typename Element::Type* v, int64_t stride, int count, int n, float factor, float* out) {
  int c = 0;
  for (; c + 4 * kLanes <= n; c += 4 * kLanes) add_value_registers<Element, 4>(weights, v + c, stride, count, factor, out + c);
  for (; c + kLanes <= n; c += kLanes) add_value_registers<Element, 1>(weights, v + c, stride, count, factor, out + c);
  for (; c < n; c++) {
    float total = out[c] * factor;
    for (int i = 0; i < count; i++) total += weights[i] * Element::value(v[i * stride + c]);
    out[c] = total;
  }
}

inline float largest_of(const float* x, int n, float most) {
  int i = 0;
  if (n >= kLanes) {
    F32 lanes = load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) lanes = maximum(load(x + i), lanes);
    const float m = largest(lanes);
    most = m > most ? m : most;
  }
  for (; i < n; i++) most = x[i] > most ? x[i] : most;
  return most;
}
inline float sum_of(const float* x, int n) {
  F32 lanes = set1(0);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) lanes = lanes + load(x + i);
  float total = sum(lanes);
  for (; i < n; i++) total += x[i];
  return total;
}

template <class Element>
inline void attention(const AttentionShape& shape, const float* q, const typename Element::Type* k, const typename Element::Type* v,
                      int64_t stride, int64_t first, int64_t last, float* max, float* sum, float* out) {
  alignas(64) float scores[kPositions];
  for (int64_t position = first; position < last; position += kPositions) {
    const int count = last - position < kPositions ? int(last - position) : kPositions;
    block_scores<Element>(shape, q, k + position * stride, stride, count, scores);
    const float most = largest_of(scores, count, *max);
    map(count, scores, [=](F32 s) { return exp(s - set1(most)); }, scores);
    const float total = sum_of(scores, count);
    const float factor = *sum > 0 ? __builtin_expf(*max - most) : 0;
    add_values<Element>(scores, v + position * stride, stride, count, shape.head_dim, factor, out);
    *sum = *sum * factor + total;
    *max = most;
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
