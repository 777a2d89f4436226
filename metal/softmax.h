// What the attention kernels share: places in a cache, scores, states of a softmax.
#pragma once
#include "arguments.h"
#include "elements.h"

namespace tq {
using namespace metal_args;

// First element of a position's keys or values: caches are (slots, n_kv_heads, capacity, head_dim).
inline ulong cache_row(constant AttentionArgs& a, uint slot, uint kv_head, uint position) {
  return ((ulong(slot) * a.n_kv_heads + kv_head) * a.capacity + position) * a.head_dim;
}
inline float score_of(constant AttentionArgs& a, float product) {
  const float score = product * a.scale;
  return a.soft_cap > 0.0f ? capped(score, a.soft_cap) : score;
}
// The first position that one at `position` sees.
inline uint first_seen(constant AttentionArgs& a, uint position) {
  return a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
}

// Of a softmax before it is normalized: nothing yet is (-INFINITY, 0).
struct State {
  float max, sum;
};
// What a state's sums count beside one with the larger maximum `max`.
inline float weight_of(thread const State& s, float max) { return s.sum == 0.0f ? 0.0f : exp(s.max - max); }
// The divisor of sums relative to `max`, with the sink's part.
inline float total_of(float sum, float max, bool has_sink, float sink) { return has_sink ? sum + exp(sink - max) : sum; }

}  // namespace tq
