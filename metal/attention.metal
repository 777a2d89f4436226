// Rotary embedding and cache writes; attention of single rows, as decoding and the float path need it.
#include "rope.h"
#include "softmax.h"

namespace tq {

TQ_CONSTANT uint kKeyLanes = 8;               // lanes that share one cached position
TQ_CONSTANT uint kSimdKeys = 32 / kKeyLanes;  // positions of a simdgroup at once
TQ_CONSTANT uint kAttentionSimds = kAttentionThreads / 32;
TQ_CONSTANT uint kGroupKeys = kAttentionSimds * kSimdKeys;

// A lane owns elements 64 j + 8 l to 64 j + 8 l + 7 of a head for its l = lane % 8 and j < D.
template <int D>
struct LaneHead {
  float4 x[2 * D];
};
template <int D, class E>
inline LaneHead<D> load_head(device const typename E::Stored* p, uint l, uint dim) {
  LaneHead<D> h;
  const bool whole = dim % 4 == 0;
  TQ_UNROLL
  for (int i = 0; i < 2 * D; i++) {
    const uint at = 64 * uint(i / 2) + 8 * l + 4 * uint(i % 2);
    h.x[i] = at < dim ? four<E>(p + at, 0, dim - at, whole) : float4(0.0f);
  }
  return h;
}
template <int D>
inline float dot_heads(thread const LaneHead<D>& a, thread const LaneHead<D>& b) {
  float sum = 0;
  TQ_UNROLL
  for (int i = 0; i < 2 * D; i++) sum += a.x[i].x * b.x[i].x + a.x[i].y * b.x[i].y + a.x[i].z * b.x[i].z + a.x[i].w * b.x[i].w;
  return sum;
}

// Positions [first, last), every kGroupKeys-th from the lane's own, for N queries that share their keys and values.
template <int D, int N, class E>
inline void attend(constant AttentionArgs& a, thread const LaneHead<D>* q, device const typename E::Stored* k,
                   device const typename E::Stored* v, uint first, uint last, uint lane, uint sg, thread State* states,
                   thread LaneHead<D>* out) {
  const uint l = lane % kKeyLanes, dim = a.head_dim;
  for (uint base = first; base < last; base += kGroupKeys) {
    const uint position = base + sg * kSimdKeys + lane / kKeyLanes;
    const bool real = position < last;
    const ulong at = ulong(real ? position : first) * dim;
    const LaneHead<D> key = load_head<D, E>(k + at, l, dim), value = load_head<D, E>(v + at, l, dim);
    TQ_UNROLL
    for (int g = 0; g < N; g++) {
      float product = dot_heads<D>(q[g], key);
      product += simd_shuffle_xor(product, 1);
      product += simd_shuffle_xor(product, 2);
      product += simd_shuffle_xor(product, 4);
      if (!real) continue;
      const float score = score_of(a, product), most = max(states[g].max, score);
      const float factor = weight_of(states[g], most), weight = exp(score - most);
      states[g].max = most, states[g].sum = states[g].sum * factor + weight;
      TQ_UNROLL
      for (int i = 0; i < 2 * D; i++) out[g].x[i] = out[g].x[i] * factor + value.x[i] * weight;
    }
  }
}

// Adds up the positions that a simdgroup's lanes have seen: every lane then has all of its elements.
template <int D>
inline void merge_lanes(thread State& s, thread LaneHead<D>& out) {
  const float most = max(max(s.max, simd_shuffle_xor(s.max, 8)), max(simd_shuffle_xor(s.max, 16), simd_shuffle_xor(s.max, 24)));
  const float weight = weight_of(s, most);
  float sum = s.sum * weight;
  sum += simd_shuffle_xor(sum, 8);
  sum += simd_shuffle_xor(sum, 16);
  s.max = most, s.sum = sum;
  TQ_UNROLL
  for (int i = 0; i < 2 * D; i++) {
    float4 x = out.x[i] * weight;
    x.x += simd_shuffle_xor(x.x, 8), x.y += simd_shuffle_xor(x.y, 8), x.z += simd_shuffle_xor(x.z, 8), x.w += simd_shuffle_xor(x.w, 8);
    x.x += simd_shuffle_xor(x.x, 16), x.y += simd_shuffle_xor(x.y, 16), x.z += simd_shuffle_xor(x.z, 16), x.w += simd_shuffle_xor(x.w, 16);
    out.x[i] = x;
  }
}

// Writes the sum of the simdgroups' states (simds) and outputs (simds, Width): normalized, or as a partial with (max, sum) behind it.
template <int Width>
inline void merge_simds(constant AttentionArgs& a, threadgroup const State* states, threadgroup const float* outs, bool has_sink,
                        float sink, device float* to, uint tid) {
  float most = has_sink && a.splits == 1 ? sink : -INFINITY;
  for (uint s = 0; s < kAttentionSimds; s++) most = max(most, states[s].max);
  float sum = 0, weights[kAttentionSimds];
  for (uint s = 0; s < kAttentionSimds; s++) {
    const State each = {states[s].max, states[s].sum};
    weights[s] = weight_of(each, most), sum += weights[s] * each.sum;
  }
  const float scale = a.splits == 1 ? 1.0f / total_of(sum, most, has_sink, sink) : 1.0f;
  for (uint d = tid; d < a.head_dim; d += kAttentionThreads) {
    float x = 0;
    for (uint s = 0; s < kAttentionSimds; s++) x += weights[s] * outs[s * Width + d];
    to[d] = x * scale;
  }
  if (a.splits > 1 && tid == 0) to[a.head_dim] = most, to[a.head_dim + 1] = sum;
}

}  // namespace tq

using namespace tq;

template <class E>
kernel void store_keys(constant AttentionArgs& a [[buffer(0)]], device float* q [[buffer(1)]], device float* k [[buffer(2)]],
                       device const float* v [[buffer(3)]], device typename E::Stored* k_cache [[buffer(4)]],
                       device typename E::Stored* v_cache [[buffer(5)]], device const float* cos [[buffer(6)]],
                       device const float* sin [[buffer(7)]], device const int* positions [[buffer(8)]],
                       device const int* slots [[buffer(9)]], device const float* growth [[buffer(10)]], TQ_IDS) {
  const uint head = group.x, row = group.y, dim = a.head_dim;
  cos += ulong(row) * (a.rope_dims / 2), sin += ulong(row) * (a.rope_dims / 2);
  if (head < a.n_heads) {
    device float* x = q + (ulong(row) * a.n_heads + head) * dim;
    if (a.flags & kRope) rope(a, x, cos, sin, lane);
    simdgroup_barrier(mem_flags::mem_device);
    if (a.flags & kGrowth)
      for (uint i = lane; i < dim; i += 32) x[i] *= growth[row];
    return;
  }
  const uint kv_head = head - a.n_heads;
  const ulong at = (ulong(row) * a.n_kv_heads + kv_head) * dim, cached = cache_row(a, uint(slots[row]), kv_head, uint(positions[row]));
  if (a.flags & kRope) rope(a, k + at, cos, sin, lane);
  simdgroup_barrier(mem_flags::mem_device);
  for (uint i = lane; i < dim; i += 32) k_cache[cached + i] = E::from_float(k[at + i]), v_cache[cached + i] = E::from_float(v[at + i]);
}
TQ_INSTANCE(store_keys_f16, store_keys, Float16)
TQ_INSTANCE(store_keys_f32, store_keys, Float32)

// Up to N query heads of one key/value head of one row, one range of positions.
template <class E, int D>
kernel void attend_rows(constant AttentionArgs& a [[buffer(0)]], device const float* q [[buffer(1)]],
                        device const typename E::Stored* k_cache [[buffer(2)]], device const typename E::Stored* v_cache [[buffer(3)]],
                        device const int* positions [[buffer(4)]], device const int* slots [[buffer(5)]], device float* out [[buffer(6)]],
                        device float* partials [[buffer(7)]], device const float* sinks [[buffer(8)]], TQ_IDS) {
  enum { N = int(queries_at_once(D)), kWidth = 64 * D };
  TQ_SHARED(float, outs, kAttentionSimds * kWidth);
  TQ_SHARED(State, states, kAttentionSimds);
  const uint split = group.x, row = group.z, dim = a.head_dim, l = lane % kKeyLanes;
  const uint shared = a.n_heads / a.n_kv_heads, chunks = (shared + N - 1) / N, kv_head = group.y / chunks;
  const uint first = group.y % chunks * N, queries = min(shared - first, uint(N)), head = kv_head * shared + first;
  const uint end = uint(positions[row]) + 1, begin = first_seen(a, end - 1), length = end - begin;
  LaneHead<D> heads[N], sums[N];
  State own[N];
  TQ_UNROLL
  for (int g = 0; g < N; g++) {
    own[g].max = -INFINITY, own[g].sum = 0;
    heads[g] = load_head<D, Float32>(q + (ulong(row) * a.n_heads + head + min(uint(g), queries - 1)) * dim, l, dim);
    TQ_UNROLL
    for (int i = 0; i < 2 * D; i++) sums[g].x[i] = float4(0.0f);
  }
  const ulong cache = cache_row(a, uint(slots[row]), kv_head, 0);
  attend<D, N, E>(a, heads, k_cache + cache, v_cache + cache, begin + uint(ulong(length) * split / a.splits),
                  begin + uint(ulong(length) * (split + 1) / a.splits), lane, sg, own, sums);
  TQ_UNROLL
  for (int g = 0; g < N; g++) {
    if (uint(g) >= queries) break;
    merge_lanes<D>(own[g], sums[g]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) states[sg].max = own[g].max, states[sg].sum = own[g].sum;
    TQ_UNROLL
    for (int i = 0; i < 2 * D; i++) {
      threadgroup float* to = outs + sg * kWidth + 64 * uint(i / 2) + 8 * l + 4 * uint(i % 2);
      if (lane < kKeyLanes) to[0] = sums[g].x[i].x, to[1] = sums[g].x[i].y, to[2] = sums[g].x[i].z, to[3] = sums[g].x[i].w;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const ulong index = ulong(row) * a.n_heads + head + uint(g);
    device float* to = a.splits == 1 ? out + index * dim : partials + (index * a.splits + split) * (dim + 2);
    const bool has_sink = (a.flags & kSinks) != 0;
    merge_simds<kWidth>(a, states, outs, has_sink, has_sink ? sinks[head + uint(g)] : 0.0f, to, tid);
  }
}
#define TQ_ATTEND(d)                                         \
  TQ_INSTANCE(attend_rows_f16_d##d, attend_rows, Float16, d) \
  TQ_INSTANCE(attend_rows_f32_d##d, attend_rows, Float32, d)
TQ_ATTEND(1)
TQ_ATTEND(2)
TQ_ATTEND(3)
TQ_ATTEND(4)
TQ_ATTEND(8)

// Adds the parts of split rows: at most one for each lane.
kernel void attend_merge(constant AttentionArgs& a [[buffer(0)]], device const float* partials [[buffer(1)]],
                         device float* out [[buffer(2)]], device const float* sinks [[buffer(3)]], TQ_IDS) {
  const uint dim = a.head_dim, head = group.x;
  const ulong index = ulong(group.y) * a.n_heads + head;
  device const float* parts = partials + index * a.splits * (dim + 2);
  const bool has_sink = (a.flags & kSinks) != 0, real = lane < a.splits;
  const float sink = has_sink ? sinks[head] : 0.0f;
  State s;
  s.max = real ? parts[lane * (dim + 2) + dim] : -INFINITY, s.sum = real ? parts[lane * (dim + 2) + dim + 1] : 0.0f;
  const float most = max(simd_max(s.max), has_sink ? sink : -INFINITY), weight = weight_of(s, most);
  const float total = total_of(simd_sum(weight * s.sum), most, has_sink, sink), share = weight / total;
  for (uint d = lane; d < (dim + 31) / 32 * 32; d += 32) {
    float x = 0;
    for (uint i = 0; i < a.splits; i++) x += simd_broadcast(share, ushort(i)) * (d < dim ? parts[i * (dim + 2) + d] : 0.0f);
    if (d < dim) out[index * dim + d] = x;
  }
}
TQ_KERNEL(attend_merge)
