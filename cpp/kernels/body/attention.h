// One query head over a float16 or float32 cache, by blocks of positions with an online softmax.
#pragma once
#include "kernels/body/float.h"
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

// out = factor * out + sum_i weight_i v_i
template <class Element>
inline void add_values(const float* weights, const typename Element::Type* v, int64_t stride, int count, int n, float factor, float* out) {
  int c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    F32 even = load(out + c) * set1(factor), odd = set1(0);
    int i = 0;
    for (; i + 1 < count; i += 2) {
      even = fma(set1(weights[i]), Element::load(v + i * stride + c), even);
      odd = fma(set1(weights[i + 1]), Element::load(v + (i + 1) * stride + c), odd);
    }
    if (i < count) even = fma(set1(weights[i]), Element::load(v + i * stride + c), even);
    store(out + c, even + odd);
  }
  for (; c < n; c++) {
    float total = out[c] * factor;
    for (int i = 0; i < count; i++) total += weights[i] * Element::value(v[i * stride + c]);
    out[c] = total;
  }
}

template <class Element>
inline void attention(const AttentionShape& shape, const float* q, const typename Element::Type* k, const typename Element::Type* v,
                      int64_t stride, int64_t first, int64_t last, float* max, float* sum, float* out) {
  alignas(64) float scores[kPositions];
  for (int64_t position = first; position < last; position += kPositions) {
    const int count = last - position < kPositions ? int(last - position) : kPositions;
    for (int i = 0; i < count; i++) scores[i] = shape.scale * key_score<Element>(q, k + (position + i) * stride, shape.head_dim);
    if (shape.soft_cap > 0) soft_cap(scores, shape.soft_cap, count);
    float most = *max;
    for (int i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
    map(count, scores, [=](F32 s) { return exp(s - set1(most)); }, scores);
    float total = 0;
    for (int i = 0; i < count; i++) total += scores[i];
    const float factor = *sum > 0 ? __builtin_expf(*max - most) : 0;
    add_values<Element>(scores, v + position * stride, stride, count, shape.head_dim, factor, out);
    *sum = *sum * factor + total;
    *max = most;
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
