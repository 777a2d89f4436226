// Query heads over a float16 or float32 cache, by blocks of positions with an online softmax. Up to kQueries of them share each register of
// keys and values; each gets the bits that it would get alone.
#pragma once
#include "kernels/body/dispatch.h"
#include "kernels/body/elements.h"
#include "kernels/body/lanes.h"
#include "kernels/body/vector.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kPositions = 64;  // of a block
inline constexpr int kQueries = 4;

// Registers of keys or values that n queries meet at once: as many as the sums leave room for, a power of two.
constexpr int side_by_side(int n, int most) {
  int many = most;
  while (many > 1 && n * many + n + 1 > kFloatRegisters) many /= 2;
  return many;
}

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

// P positions for each of N queries, as far as row_sums brings them before it needs the others: parts[g * kLanes / P] is one register of
// query g.
template <class Element, int N, int P>
inline void key_parts(const AttentionQuery* queries, const typename Element::Type* k, int64_t stride, int dim, F32* parts) {
  F32 sums[N][P];
  for (auto& row : sums)
    for (F32& lane : row) lane = set1(0);
  for (int i = 0; i < dim; i += kLanes) {
    F32 q[N];
    for (int g = 0; g < N; g++) q[g] = load(queries[g].q + i);
    for (int p = 0; p < P; p++) {
      const F32 key = Element::load(k + p * stride + i);
      for (int g = 0; g < N; g++) sums[g][p] = fma(q[g], key, sums[g][p]);
    }
  }
  for (int g = 0; g < N; g++) parts[g * (kLanes / P)] = row_sums<1, P>(sums[g]);
}

// scores[g * kPositions + i] of the block's positions i < count.
template <class Element, int N>
inline void block_scores(const AttentionShape& shape, const AttentionQuery* queries, const typename Element::Type* k, int64_t stride,
                         int count, float* scores) {
  constexpr int kTogether = side_by_side(N, kLanes), kSteps = kLanes / kTogether;
  int i = 0;
  if (shape.head_dim % kLanes == 0)
    for (; i + kLanes <= count; i += kLanes) {
      F32 parts[N * kSteps];
      for (int c = 0; c < kSteps; c++)
        key_parts<Element, N, kTogether>(queries, k + (i + c * kTogether) * stride, stride, shape.head_dim, parts + c);
      for (int g = 0; g < N; g++) store(scores + g * kPositions + i, set1(shape.scale) * row_sums<kTogether>(parts + g * kSteps));
    }
  for (; i < count; i++)
    for (int g = 0; g < N; g++) scores[g * kPositions + i] = shape.scale * key_score<Element>(queries[g].q, k + i * stride, shape.head_dim);
  if (shape.soft_cap > 0)
    for (int g = 0; g < N; g++) soft_cap(scores + g * kPositions, shape.soft_cap, count);
}

// out = factor * out + sum_i weight_i v_i for N queries and J registers of channels from c on.
template <class Element, int N, int J>
inline void add_value_registers(AttentionQuery* queries, const float* weights, const float* factors, const typename Element::Type* v,
                                int64_t stride, int count, int c) {
  F32 sums[N][J];
  for (int g = 0; g < N; g++)
    for (int j = 0; j < J; j++) sums[g][j] = load(queries[g].out + c + j * kLanes) * set1(factors[g]);
  for (int i = 0; i < count; i++) {
    F32 values[J];
    for (int j = 0; j < J; j++) values[j] = Element::load(v + i * stride + c + j * kLanes);
    for (int g = 0; g < N; g++) {
      const F32 weight = set1(weights[g * kPositions + i]);
      for (int j = 0; j < J; j++) sums[g][j] = fma(weight, values[j], sums[g][j]);
    }
  }
  for (int g = 0; g < N; g++)
    for (int j = 0; j < J; j++) store(queries[g].out + c + j * kLanes, sums[g][j]);
}
template <class Element, int N>
inline void add_values(AttentionQuery* queries, const float* weights, const float* factors, const typename Element::Type* v, int64_t stride,
                       int count, int dim) {
  constexpr int kAtOnce = side_by_side(N + 1, 4);
  int c = 0;
  for (; c + kAtOnce * kLanes <= dim; c += kAtOnce * kLanes)
    add_value_registers<Element, N, kAtOnce>(queries, weights, factors, v, stride, count, c);
  for (; c + kLanes <= dim; c += kLanes) add_value_registers<Element, N, 1>(queries, weights, factors, v, stride, count, c);
  for (; c < dim; c++)
    for (int g = 0; g < N; g++) {
      float total = queries[g].out[c] * factors[g];
      for (int i = 0; i < count; i++) total += weights[g * kPositions + i] * Element::value(v[i * stride + c]);
      queries[g].out[c] = total;
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

// What a query's sums so far are to be multiplied by, now that its greatest score is `most`.
inline float rescaled(float sum, float max, float most) { return max == most ? 1 : sum > 0 ? __builtin_expf(max - most) : 0; }

// A query's softmax moves on over a block's scores, which become weights. Returns what its sums so far are to be multiplied by.
inline float weigh_block(AttentionQuery& query, float* scores, int count) {
  const float most = largest_of(scores, count, query.max);
  map(count, scores, [=](F32 s) { return exp(s - set1(most)); }, scores);
  const float factor = rescaled(query.sum, query.max, most);
  query.sum = query.sum * factor + sum_of(scores, count);
  query.max = most;
  return factor;
}

template <class Element, int N>
inline void attend_block(const AttentionShape& shape, AttentionQuery* queries, const typename Element::Type* k,
                         const typename Element::Type* v, int64_t stride, int count) {
  alignas(64) float scores[N * kPositions];
  float factors[N];
  block_scores<Element, N>(shape, queries, k, stride, count, scores);
  for (int g = 0; g < N; g++) factors[g] = weigh_block(queries[g], scores + g * kPositions, count);
  add_values<Element, N>(queries, scores, factors, v, stride, count, shape.head_dim);
}

// Block by block, so that all queries read what is in the nearest cache by then.
template <class Element>
inline void attention(const AttentionShape& shape, AttentionQuery* queries, int64_t n, const typename Element::Type* k,
                      const typename Element::Type* v, int64_t stride, int64_t first, int64_t last) {
  for (int64_t position = first; position < last; position += kPositions) {
    const int count = last - position < kPositions ? int(last - position) : kPositions;
    for_token_groups<kQueries>(n, [&](auto group, int64_t g) {
      attend_block<Element, decltype(group)::size>(shape, queries + g, k + position * stride, v + position * stride, stride, count);
    });
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
