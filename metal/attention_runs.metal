// Attention of prompts: up to 32 rows of one slot at consecutive positions, one head, against tiles of 32 positions. Each of four
// simdgroups has eight rows: scores and sums of values are products of simdgroup matrices, halves with float sums.
#include "softmax.h"

namespace tq {

struct Run {
  uint first, count;  // rows
};
TQ_CONSTANT uint kRunSimdRows = kRunQueries / (kRunThreads / 32);
static_assert(kRunSimdRows == 8 && kRunKeys == 32, "a simdgroup's scores are four matrices; a row's are eight of each of four lanes");

// Rows of `dim` elements, `stride` apart, as halves of Width; zeros beyond `rows` and `dim`.
template <int Width, class E>
inline void load_rows(threadgroup half* to, device const typename E::Stored* from, ulong stride, uint rows, uint wanted, uint dim,
                      uint tid) {
  for (uint i = tid; i < wanted * Width; i += kRunThreads) {
    const uint row = i / Width, column = i % Width;
    to[i] = row < rows && column < dim ? half(E::to_float(from[row * stride + column])) : half(0.0f);
  }
}

// One simdgroup's softmax of scores (8, kRunKeys) of positions from `key` on: weights as halves, the state's new factor on the diagonal.
inline void weigh(constant AttentionArgs& a, threadgroup float* scores, threadgroup half* weights, threadgroup float* factors,
                  thread State& s, uint position, bool real, uint key, uint lane) {
  const uint row = lane / 4, first = lane % 4 * 8, from = first_seen(a, position);
  float score[8], most = s.max;
  TQ_UNROLL
  for (uint i = 0; i < 8; i++) {
    const uint at = key + first + i;
    score[i] = real && at >= from && at <= position ? score_of(a, scores[row * kRunKeys + first + i]) : -INFINITY;
    most = max(most, score[i]);
  }
  most = max(most, simd_shuffle_xor(most, 1));
  most = max(most, simd_shuffle_xor(most, 2));
  const float factor = weight_of(s, most);
  float sum = 0;
  TQ_UNROLL
  for (uint i = 0; i < 8; i++) {
    const float weight = score[i] == -INFINITY ? 0.0f : exp(score[i] - most);
    sum += weight, weights[row * kRunKeys + first + i] = half(weight);
  }
  sum += simd_shuffle_xor(sum, 1);
  sum += simd_shuffle_xor(sum, 2);
  s.max = most, s.sum = s.sum * factor + sum;
  if (lane % 4 == 0) factors[row * 9] = factor;
}

}  // namespace tq

using namespace tq;

template <int Width>
kernel void attend_runs(constant AttentionArgs& a [[buffer(0)]], device const float* q [[buffer(1)]],
                        device const half* k_cache [[buffer(2)]], device const half* v_cache [[buffer(3)]],
                        device const int* positions [[buffer(4)]], device const int* slots [[buffer(5)]], device float* out [[buffer(6)]],
                        device const Run* runs [[buffer(7)]], device const float* sinks [[buffer(8)]], TQ_IDS) {
  enum { kBlocks = Width / 8, kKeyBlocks = int(kRunKeys) / 8 };
  TQ_SHARED(half, queries, kRunQueries * Width);
  TQ_SHARED(half, tile, kRunKeys * Width);  // keys, then values
  TQ_SHARED(float, all_scores, kRunQueries * kRunKeys);
  TQ_SHARED(half, all_weights, kRunQueries * kRunKeys);
  TQ_SHARED(float, all_factors, kRunThreads / 32 * 64);
  threadgroup float *scores = all_scores + sg * kRunSimdRows * kRunKeys, *factors = all_factors + sg * 64;
  threadgroup half* weights = all_weights + sg * kRunSimdRows * kRunKeys;
  const uint head = group.x, kv_head = head / (a.n_heads / a.n_kv_heads), dim = a.head_dim;
  const uint first = runs[group.y].first, count = runs[group.y].count, start = uint(positions[first]);
  const ulong cache = cache_row(a, uint(slots[first]), kv_head, 0);
  load_rows<Width, Float32>(queries, q + (ulong(first) * a.n_heads + head) * dim, ulong(a.n_heads) * dim, count, kRunQueries, dim, tid);
  for (uint i = lane; i < 64; i += 32) factors[i] = 0;
  simdgroup_float8x8 sums[kBlocks];
  TQ_UNROLL
  for (int b = 0; b < int(kBlocks); b++) sums[b] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  State state;
  state.max = -INFINITY, state.sum = 0;
  const uint row = sg * kRunSimdRows + lane / 4;  // of a lane's softmax
  for (uint key = first_seen(a, start) / kRunKeys * kRunKeys; key < start + count; key += kRunKeys) {
    const uint keys = min(start + count - key, kRunKeys);
    load_rows<Width, Float16>(tile, k_cache + cache + ulong(key) * dim, dim, keys, kRunKeys, dim, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TQ_UNROLL
    for (int n = 0; n < int(kKeyBlocks); n++) {
      simdgroup_float8x8 score = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (uint b = 0; b < uint(kBlocks); b++) {
        simdgroup_half8x8 query, these;
        simdgroup_load(query, queries + sg * kRunSimdRows * Width + 8 * b, Width);
        simdgroup_load(these, tile + 8 * uint(n) * Width + 8 * b, Width, 0, true);
        simdgroup_multiply_accumulate(score, query, these, score);
      }
      simdgroup_store(score, scores + 8 * n, kRunKeys);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    weigh(a, scores, weights, factors, state, start + row, row < count, key, lane);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_rows<Width, Float16>(tile, v_cache + cache + ulong(key) * dim, dim, keys, kRunKeys, dim, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 factor;
    simdgroup_load(factor, factors, 8);
    TQ_UNROLL
    for (int b = 0; b < int(kBlocks); b++) {
      simdgroup_float8x8 scaled;
      simdgroup_multiply(scaled, factor, sums[b]);
      for (uint n = 0; n < uint(kKeyBlocks); n++) {
        simdgroup_half8x8 weight, value;
        simdgroup_load(weight, weights + 8 * n, kRunKeys);
        simdgroup_load(value, tile + 8 * n * Width + 8 * uint(b), Width);
        simdgroup_multiply_accumulate(scaled, weight, value, scaled);
      }
      sums[b] = scaled;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  const bool has_sink = (a.flags & kSinks) != 0;
  const float sink = has_sink ? sinks[head] : 0.0f, most = has_sink ? max(state.max, sink) : state.max;
  const float scale = row < count ? weight_of(state, most) / total_of(state.sum * weight_of(state, most), most, has_sink, sink) : 0.0f;
  device float* to = out + (ulong(first + row) * a.n_heads + head) * dim;
  TQ_UNROLL
  for (int b = 0; b < int(kBlocks); b++) {  // through the scores' memory, a block at a time
    simdgroup_store(sums[b], scores, 8);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 2; i++) {
      const uint column = lane % 4 * 2 + i;
      if (row < count && 8 * uint(b) + column < dim) to[8 * uint(b) + column] = scores[lane / 4 * 8 + column] * scale;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}
TQ_INSTANCE(attend_runs_64, attend_runs, 64)
TQ_INSTANCE(attend_runs_128, attend_runs, 128)
