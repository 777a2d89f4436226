// Caches in codes (format/cache.h): rotary embedding, rotation and the encoder on the way in; attention over the codes. A row reads its own
// position from the planes, exactly, and all before it from the codes, in spans of fixed length: what it gives does not depend on how a
// text was cut into batches.
#include "block.h"
#include "format/cache_layout.h"
#include "rope.h"
#include "rotate.h"
#include "softmax.h"

namespace tq {

TQ_CONSTANT uint kTilePositions = 64;
static_assert(tqn::cache::kTile == 64 && kCodedThreads == kTilePositions, "a thread is a position of a tile, then channels");
TQ_CONSTANT uint kLaneChannels = kMaxHeadDim / 32;  // of a vector that one simdgroup encodes
TQ_CONSTANT uint kThreadChannels = kMaxHeadDim / kCodedThreads;
TQ_CONSTANT uint kCodedSimds = kCodedThreads / 32;

// A sum of floats and what rounding has taken of it: about 48 bits.
struct Exact {
  float high, low;
};
inline Exact add(Exact a, Exact b) {
  const float sum = a.high + b.high, part = sum - a.high;
  const float lost = (a.high - (sum - part)) + (b.high - part) + a.low + b.low;
  Exact out;
  out.high = sum + lost, out.low = lost - (out.high - sum);
  return out;
}
inline Exact product(float a, float b) {
  Exact out;
  out.high = a * b, out.low = fma(a, b, -out.high);
  return out;
}
inline float quotient(Exact a, float b) {
  const float q = a.high / b;
  return q + (fma(-q, b, a.high) + a.low) / b;
}

// The scale that fits the levels best, summed in the order of the scalar encoder.
inline float fitted_scale(threadgroup const float* x, uint dim, float scale, uint lane) {
  Exact sum = {0, 0};
  int squares = 0;
  for (uint c = lane; c < dim; c += 32) {
    const int level = tqn::cache::kLevel[tqn::cache::nearest_level(x[c] / scale)];
    sum = add(sum, product(x[c], float(level))), squares += level * level;
  }
  for (ushort d = 16; d > 0; d /= 2) {
    Exact other;
    other.high = simd_shuffle_xor(sum.high, d), other.low = simd_shuffle_xor(sum.low, d);
    sum = add(sum, other), squares += simd_shuffle_xor(squares, d);
  }
  return quotient(sum, float(squares));
}

// NaN where x is not finite.
inline float largest_magnitude(threadgroup const float* x, uint dim, uint lane) {
  float most = 0, poison = 0;
  for (uint c = lane; c < dim; c += 32) most = max(most, fabs(x[c])), poison += x[c] * 0.0f;
  return simd_max(most) + simd_sum(poison);
}

inline int rounded(float x, float scale) { return scale > 0.0f ? int(min(max(rint(x / scale), -127.0f), 127.0f)) : 0; }

// x (dim) as position `place` of a tile of keys or values. One simdgroup.
inline void encode(threadgroup const float* x, uint dim, bool key, int bits, int place, device uchar* tile, uint lane) {
  const uint padded_dim = uint(tqn::cache::padded(dim)), apart = key ? 4 : 8;  // channels between a byte's halves
  float scale = largest_magnitude(x, dim, lane) / 127.0f;
  if (bits == 4)
    for (int round = 0; round < 2 && scale > 0.0f; round++) scale = fitted_scale(x, dim, scale, lane);
  const half stored = half(scale);
  scale = float(stored);
  for (uint c = lane; c < padded_dim; c += 32) {
    device uchar* to = tile + (key ? tqn::cache::key_byte(bits, c, place) : tqn::cache::value_byte(bits, c, place));
    if (bits == 8) {
      *to = uchar(rounded(c < dim ? x[c] : 0.0f, scale));
    } else if (!(c & apart)) {
      const int low = tqn::cache::nearest_level(c < dim && scale > 0.0f ? x[c] / scale : 0.0f);
      const int high = tqn::cache::nearest_level(c + apart < dim && scale > 0.0f ? x[c + apart] / scale : 0.0f);
      *to = uchar(low | (high << 4));
    }
  }
  if (lane == 0) ((device half*)(tile + tqn::cache::code_bytes(bits, dim)))[place] = stored;
}

// Four integers that a word holds; upper: of its bytes' upper halves, 4 bits.
inline float4 four_codes(uint word, int bits, bool upper) {
  if (bits == 8) return float4(as_type<char4>(word));
  const uint codes = (upper ? word >> 4 : word) & 0x0F0F0F0Fu;
  return float4(float(tqn::cache::kLevel[codes & 255]), float(tqn::cache::kLevel[(codes >> 8) & 255]),
                float(tqn::cache::kLevel[(codes >> 16) & 255]), float(tqn::cache::kLevel[codes >> 24]));
}
inline float one_code(uint byte, int bits, bool upper) {
  if (bits == 8) return float(int(int8_t(uchar(byte))));
  return float(tqn::cache::kLevel[upper ? byte >> 4 : byte & 15]);
}

inline uint spans_before(uint position) { return position == 0 ? 1 : (position + kSpanPositions - 1) / kSpanPositions; }

}  // namespace tq

using namespace tq;

// A simdgroup is one head of q, k or v of one row.
kernel void store_codes(constant CodedArgs& c [[buffer(0)]], device float* q [[buffer(1)]], device float* k [[buffer(2)]],
                        device float* v [[buffer(3)]], device uchar* k_cache [[buffer(4)]], device uchar* v_cache [[buffer(5)]],
                        device const float* cos [[buffer(6)]], device const float* sin [[buffer(7)]],
                        device const int* positions [[buffer(8)]], device const int* slots [[buffer(9)]],
                        device const float* growth [[buffer(10)]], device const float* signs [[buffer(11)]],
                        device const float* hartley [[buffer(12)]], device int8_t* q_codes [[buffer(13)]],
                        device float* q_scale [[buffer(14)]], device const float* key_mean [[buffer(15)]],
                        device const float* key_balance [[buffer(16)]], TQ_IDS) {
  TQ_SHARED(float, first, kMaxHeadDim + kMaxHeadDim / 32);
  TQ_SHARED(float, second, kMaxHeadDim + kMaxHeadDim / 32);
  TQ_SHARED(float, plain, kMaxHeadDim);
  constant AttentionArgs& a = c.attention;
  const uint head = group.x, row = group.y, dim = a.head_dim, n_kv = a.n_kv_heads;
  const bool query = head < a.n_heads, key = !query && head < a.n_heads + n_kv;
  const uint kv_head = query ? head / (a.n_heads / n_kv) : (head - a.n_heads) % n_kv;
  device float* x = query ? q + (ulong(row) * a.n_heads + head) * dim : (key ? k : v) + (ulong(row) * n_kv + kv_head) * dim;
  const ulong angles = ulong(row) * (a.rope_dims / 2);
  if ((a.flags & kRope) && (query || key)) rope(a, x, cos + angles, sin + angles, lane);
  simdgroup_barrier(mem_flags::mem_device);
  const float grown = query && (a.flags & kGrowth) ? growth[row] : 1.0f;
  for (uint i = lane; i < dim; i += 32) {
    float y = x[i] * grown;
    if (key && (a.flags & kKeyMean)) y -= key_mean[kv_head * dim + i];
    if (key && (a.flags & kKeyBalance)) y /= key_balance[kv_head * dim + i];
    if (query && (a.flags & kKeyBalance)) y *= key_balance[kv_head * dim + i];
    first[padded(i)] = signs[i] * y;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* turned = mix<false>(c.rotation, hartley, first, second, dim, lane, 32);
  const float factor = hadamard_factor(c.rotation);
  for (uint i = lane; i < dim; i += 32) plain[i] = factor * turned[padded(i)], x[i] = factor * turned[padded(i)];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (query) {
    const uint padded_dim = uint(tqn::cache::padded(dim));
    const ulong at = ulong(row) * a.n_heads + head;
    const float scale = largest_magnitude(plain, dim, lane) / 127.0f;
    for (uint i = lane; i < padded_dim; i += 32) q_codes[at * padded_dim + i] = int8_t(i < dim ? rounded(plain[i], scale) : 0);
    if (lane == 0) q_scale[at] = scale;
    return;
  }
  const int bits = int(key ? c.k_bits : c.v_bits);
  const uint position = uint(positions[row]);
  const ulong tile = (ulong(slots[row]) * n_kv + kv_head) * ulong(tqn::cache::tiles(a.capacity)) + position / kTilePositions;
  encode(plain, dim, key, bits, int(position % kTilePositions), (key ? k_cache : v_cache) + tile * ulong(tqn::cache::tile_bytes(bits, dim)),
         lane);
}
TQ_KERNEL(store_codes)

// Up to N query heads of one key/value head of one row, one span of positions: a thread has a position of a tile, then channels.
template <int N>
kernel void attend_coded(constant CodedArgs& c [[buffer(0)]], device const int8_t* q_codes [[buffer(1)]],
                         device const float* q_scale [[buffer(2)]], device const uchar* k_cache [[buffer(3)]],
                         device const uchar* v_cache [[buffer(4)]], device const int* positions [[buffer(5)]],
                         device const int* slots [[buffer(6)]], device float* partials [[buffer(7)]], TQ_IDS) {
  TQ_SHARED(float, q, N * kMaxHeadDim);
  TQ_SHARED(float, weights, N * kTilePositions);
  TQ_SHARED(float, across, kCodedSimds * N);
  constant AttentionArgs& a = c.attention;
  const uint span = group.x, row = c.first_row + group.z, dim = a.head_dim, padded_dim = uint(tqn::cache::padded(dim));
  const uint shared = a.n_heads / a.n_kv_heads, chunks = (shared + N - 1) / N, kv_head = group.y / chunks;
  const uint first = group.y % chunks * N, queries = min(shared - first, uint(N)), head = kv_head * shared + first;
  const uint position = uint(positions[row]), begin = max(span * kSpanPositions, first_seen(a, position)),
             end = min((span + 1) * kSpanPositions, position);
  if (span >= spans_before(position)) return;
  const int k_bits = int(c.k_bits), v_bits = int(c.v_bits);
  const ulong k_bytes = ulong(tqn::cache::tile_bytes(k_bits, dim)), v_bytes = ulong(tqn::cache::tile_bytes(v_bits, dim));
  const ulong tiles = (ulong(slots[row]) * a.n_kv_heads + kv_head) * ulong(tqn::cache::tiles(a.capacity));
  const ulong at = ulong(row) * a.n_heads + head;
  for (uint i = tid; i < queries * padded_dim; i += kCodedThreads)
    q[i / padded_dim * kMaxHeadDim + i % padded_dim] = float(q_codes[at * padded_dim + i]);
  State states[N];
  float out[N * kThreadChannels];
  TQ_UNROLL
  for (int g = 0; g < N; g++) states[g].max = -INFINITY, states[g].sum = 0;
  TQ_UNROLL
  for (uint i = 0; i < N * kThreadChannels; i++) out[i] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint tile = begin / kTilePositions; tile * kTilePositions < end; tile++) {
    device const uchar *keys = k_cache + (tiles + tile) * k_bytes, *values = v_cache + (tiles + tile) * v_bytes;
    const bool real = tile * kTilePositions + tid >= begin && tile * kTilePositions + tid < end;
    float acc[N];
    TQ_UNROLL
    for (int g = 0; g < N; g++) acc[g] = 0;
    for (uint channel = 0; channel < padded_dim; channel += 4) {
      const uint word = *(device const uint*)(keys + tqn::cache::key_byte(k_bits, channel, int(tid)));
      const float4 codes = four_codes(word, k_bits, tqn::cache::key_in_upper_half(channel));
      TQ_UNROLL
      for (int g = 0; g < N; g++) {
        threadgroup const float* with = q + min(uint(g), queries - 1) * kMaxHeadDim + channel;
        acc[g] += codes.x * with[0] + codes.y * with[1] + codes.z * with[2] + codes.w * with[3];
      }
    }
    const float k_scale = float(((device const half*)(keys + tqn::cache::code_bytes(k_bits, dim)))[tid]);
    const float v_scale = float(((device const half*)(values + tqn::cache::code_bytes(v_bits, dim)))[tid]);
    TQ_UNROLL
    for (int g = 0; g < N; g++) {
      acc[g] = real ? score_of(a, q_scale[at + min(uint(g), queries - 1)] * k_scale * acc[g]) : -INFINITY;
      const float most = simd_max(acc[g]);
      if (lane == 0) across[sg * N + uint(g)] = most;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TQ_UNROLL
    for (int g = 0; g < N; g++) {
      float most = states[g].max;
      for (uint s = 0; s < kCodedSimds; s++) most = max(most, across[s * N + uint(g)]);
      const float before = states[g].max == -INFINITY ? 0.0f : exp(states[g].max - most), weight = real ? exp(acc[g] - most) : 0.0f;
      states[g].max = most, states[g].sum = states[g].sum * before + weight;
      weights[uint(g) * kTilePositions + tid] = real ? weight * v_scale : 0.0f;
      TQ_UNROLL
      for (uint i = 0; i < kThreadChannels; i++) out[uint(g) * kThreadChannels + i] *= before;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TQ_UNROLL
    for (uint i = 0; i < kThreadChannels; i++) {
      const uint channel = tid + i * kCodedThreads;
      if (channel >= padded_dim) break;
      const bool upper = tqn::cache::value_in_upper_half(channel);
      for (uint pair = 0; pair < kTilePositions / 2; pair++) {
        const uint two = uint(*(device const ushort*)(values + tqn::cache::value_byte(v_bits, channel, int(2 * pair))));
        const float even = one_code(two & 255, v_bits, upper), odd = one_code(two >> 8, v_bits, upper);
        TQ_UNROLL
        for (int g = 0; g < N; g++) {
          threadgroup const float* w = weights + uint(g) * kTilePositions + 2 * pair;
          out[uint(g) * kThreadChannels + i] += even * w[0] + odd * w[1];
        }
      }
    }
  }
  TQ_UNROLL
  for (int g = 0; g < N; g++) {
    const float sum = block_sum(states[g].sum, across, kCodedThreads, lane, sg);
    if (uint(g) >= queries) continue;
    device float* to = partials + ((ulong(group.z) * a.n_heads + head + uint(g)) * a.splits + span) * (dim + 2);
    TQ_UNROLL
    for (uint i = 0; i < kThreadChannels; i++)
      if (tid + i * kCodedThreads < dim) to[tid + i * kCodedThreads] = out[uint(g) * kThreadChannels + i];
    if (tid == 0) to[dim] = states[g].max, to[dim + 1] = sum;
  }
}
TQ_INSTANCE(attend_coded_n1, attend_coded, 1)
TQ_INSTANCE(attend_coded_n4, attend_coded, 4)

// Adds the spans of a row's head in order, then its own position, and undoes the rotation.
kernel void finish_coded(constant CodedArgs& c [[buffer(0)]], device const float* q [[buffer(1)]], device const float* k [[buffer(2)]],
                         device const float* v [[buffer(3)]], device const int* positions [[buffer(4)]],
                         device const float* partials [[buffer(5)]], device const float* sinks [[buffer(6)]],
                         device const float* signs [[buffer(7)]], device const float* hartley [[buffer(8)]],
                         device float* out [[buffer(9)]], TQ_IDS) {
  TQ_SHARED(float, first, kMaxHeadDim + kMaxHeadDim / 32);
  TQ_SHARED(float, second, kMaxHeadDim + kMaxHeadDim / 32);
  TQ_SHARED(float, partial, kCodedSimds);
  constant AttentionArgs& a = c.attention;
  const uint dim = a.head_dim, head = group.x, row = c.first_row + group.y, kv_head = head / (a.n_heads / a.n_kv_heads);
  const ulong index = ulong(row) * a.n_heads + head, own = (ulong(row) * a.n_kv_heads + kv_head) * dim;
  device const float* parts = partials + (ulong(group.y) * a.n_heads + head) * a.splits * (dim + 2);
  const uint n = spans_before(uint(positions[row]));
  float product = 0;
  for (uint d = tid; d < dim; d += kCodedThreads) product += q[index * dim + d] * k[own + d];
  const float score = score_of(a, block_sum(product, partial, kCodedThreads, lane, sg));
  const bool has_sink = (a.flags & kSinks) != 0;
  const float sink = has_sink ? sinks[head] : 0.0f;
  float most = has_sink ? max(score, sink) : score;
  for (uint i = 0; i < n; i++) most = max(most, parts[i * (dim + 2) + dim]);
  float sum = exp(score - most);
  const float mine = sum;
  for (uint i = 0; i < n; i++) {
    const State each = {parts[i * (dim + 2) + dim], parts[i * (dim + 2) + dim + 1]};
    sum += weight_of(each, most) * each.sum;
  }
  const float total = total_of(sum, most, has_sink, sink);
  for (uint d = tid; d < dim; d += kCodedThreads) {
    float x = mine * v[own + d];
    for (uint i = 0; i < n; i++) {
      const State each = {parts[i * (dim + 2) + dim], parts[i * (dim + 2) + dim + 1]};
      x += weight_of(each, most) * parts[i * (dim + 2) + d];
    }
    first[padded(d)] = x / total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* turned = mix<false>(c.rotation, hartley, first, second, dim, tid, kCodedThreads);
  const float factor = hadamard_factor(c.rotation);
  for (uint d = tid; d < dim; d += kCodedThreads) out[index * dim + d] = factor * signs[d] * turned[padded(d)];
}
TQ_KERNEL(finish_coded)
