// Queries, keys and values on their way to a cache in codes: rotary embedding, rotation, and the encoder of format/cache.cpp, operation by
// operation, so that the integers are the same. A warp works on one vector.
#pragma once
#include <cmath>

#include "cache_codes.cuh"
#include "decode.cuh"
#include "rope.cuh"
#include "rotation.cuh"

namespace tq::cuda {

inline constexpr int kMaxCodedDim = 256, kLaneChannels = kMaxCodedDim / kWarp;

__device__ inline uint32_t warp_max(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, x);
#else
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
  return x;
#endif
}
__device__ inline int warp_sum(int x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(~0u, x);
#else
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
#endif
}

// A warp's vector of up to 32 C channels; lane's are lane + 32 i.
template <int C = kLaneChannels>
struct LaneVector {
  float x[C];
};
template <int C>
struct LaneLevels {
  int code[C];
};

__device__ inline int lane_of() { return int(threadIdx.x) % kWarp; }
// Rotations that a warp does in registers; others need a block and shared memory.
inline bool rotates_in_registers(const RotationView& r) { return r.n_primes == 0; }

// As tqn::cache::nearest_level, with the borders in registers.
__device__ inline int nearest_level(float x) {
  constexpr float middles[7] = {12, 24.5f, 37.5f, 51, 66.5f, 85.5f, 111.5f};
  int step = 0;
#pragma unroll
  for (int i = 0; i < 7; i++) step += fabsf(x) > middles[i];
  return x < 0 ? tqn::cache::kLevels / 2 - 1 - step : tqn::cache::kLevels / 2 + step;
}

// From a plane: turned by its position (rope.cuh), but not by the rotation. Where `query`, grown as long contexts ask. No load stands
// behind a condition on the channel, so that all are on their way at once.
template <int C = kLaneChannels>
__device__ inline LaneVector<C> load_vector(const AttentionView& a, int row, const float* from, bool turned, bool query) {
  const int dim = a.shape.head_dim, half = a.rope_dims / 2;
  LaneVector<C> l;
#pragma unroll
  for (int i = 0; i < C; i++) l.x[i] = from[min(lane_of() + kWarp * i, dim - 1)];
  if (turned) {
    float other[C], c[C], s[C];
#pragma unroll
    for (int i = 0; i < C; i++) {
      const Turn turn(a, min(lane_of() + kWarp * i, 2 * half - 1));
      other[i] = from[turn.other], c[i] = a.cos[int64_t(row) * half + turn.pair], s[i] = a.sin[int64_t(row) * half + turn.pair];
    }
#pragma unroll
    for (int i = 0; i < C; i++) {
      const int channel = lane_of() + kWarp * i;
      const float turned_x = l.x[i] * c[i] + (Turn(a, channel).first ? -other[i] : other[i]) * s[i];
      l.x[i] = channel < 2 * half ? turned_x : l.x[i];
    }
  }
  const float grown = query && a.growth.beta != 0 ? query_growth(a, row) : 1.f;
#pragma unroll
  for (int i = 0; i < C; i++) l.x[i] = lane_of() + kWarp * i < dim ? grown * l.x[i] : 0.f;
  return l;
}

// What a file says of the channels of a key/value head (KeyStatistics of format/cache.h); where it says nothing, what changes nothing. No
// kernel writes it.
template <int C>
struct LaneStatistics {
  LaneVector<C> mean, balance;
};
template <int C>
__device__ inline LaneStatistics<C> load_statistics(const AttentionView& a, int kv_head) {
  const int dim = a.shape.head_dim;
  LaneStatistics<C> s;
#pragma unroll
  for (int i = 0; i < C; i++) {
    const int at = kv_head * dim + min(lane_of() + kWarp * i, dim - 1);
    s.mean.x[i] = a.key_mean ? a.key_mean[at] : 0.f;
    s.balance.x[i] = a.key_balance ? a.key_balance[at] : 1.f;
  }
  return s;
}

// As balance_key and balance_query; channels behind the last are 0 before and after.
template <int C>
__device__ inline void balance(const LaneStatistics<C>& s, int dim, bool query, LaneVector<C>& l) {
#pragma unroll
  for (int i = 0; i < C; i++) {
    if (lane_of() + kWarp * i >= dim) continue;
    l.x[i] = query ? l.x[i] * s.balance.x[i] : (l.x[i] - s.mean.x[i]) / s.balance.x[i];
  }
}

// A lane's signs of a rotation, 0 behind its last channel; no kernel writes them.
template <int C>
__device__ inline LaneVector<C> load_signs(const RotationView& r) {
  LaneVector<C> signs;
#pragma unroll
  for (int i = 0; i < C; i++) {
    const float sign = r.signs[min(lane_of() + kWarp * i, r.n - 1)];
    signs.x[i] = lane_of() + kWarp * i < r.n ? sign : 0.f;
  }
  return signs;
}

// Butterflies of M vectors by the warp's lanes alone; n: of their channels, a power of two.
template <int C, int M>
__device__ inline void mix_lanes(LaneVector<C> (&l)[M], int n) {
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    if (d >= n) break;
    const float sign = lane_of() & d ? -1.f : 1.f;
#pragma unroll
    for (int i = 0; i < C; i++)
#pragma unroll
      for (LaneVector<C>& v : l) v.x[i] = fmaf(sign, v.x[i], __shfl_xor_sync(~0u, v.x[i], d));
  }
#pragma unroll
  for (int d = 1; d < C; d *= 2) {
    if (d * kWarp >= n) break;
#pragma unroll
    for (int i = 0; i < C; i++)
      if (!(i & d))
#pragma unroll
        for (LaneVector<C>& v : l) {
          const float p = v.x[i], q = v.x[i + d];
          v.x[i] = p + q, v.x[i + d] = p - q;
        }
  }
}

// x <- R x of M vectors, for rotations that are done in registers.
template <int C, int M>
__device__ inline void rotate(const RotationView& r, const LaneVector<C>& signs, LaneVector<C> (&l)[M]) {
#pragma unroll
  for (int i = 0; i < C; i++)
#pragma unroll
    for (LaneVector<C>& v : l) v.x[i] *= signs.x[i];
  mix_lanes(l, r.n);
  const float factor = hadamard_factor(r);
#pragma unroll
  for (int i = 0; i < C; i++)
#pragma unroll
    for (LaneVector<C>& v : l) v.x[i] *= factor;
}

// Any rotation. vectors: 2 * padded_size(kMaxCodedDim) floats of the block, which is this warp.
__device__ inline void rotate(const RotationView& r, const LaneVector<>& signs, LaneVector<> (&l)[1], float* vectors) {
  if (r.n_primes == 0) return rotate(r, signs, l);
  const float factor = hadamard_factor(r);
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++)
    if (lane_of() + kWarp * i < r.n) vectors[padded(lane_of() + kWarp * i)] = signs.x[i] * l[0].x[i];
  __syncthreads();
  const float* const rotated = mix(r, vectors, vectors + padded_size(kMaxCodedDim));
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++)
    if (lane_of() + kWarp * i < r.n) l[0].x[i] = factor * rotated[padded(lane_of() + kWarp * i)];
}

template <int C>
__device__ inline void store_vector(const LaneVector<C>& l, int dim, float* to) {
#pragma unroll
  for (int i = 0; i < C; i++)
    if (lane_of() + kWarp * i < dim) to[lane_of() + kWarp * i] = l.x[i];
}

// NaN where x is not finite.
template <int C>
__device__ inline float largest_magnitude(const LaneVector<C>& l) {
  uint32_t most = 0;  // magnitudes are ordered as their bits are
#pragma unroll
  for (int i = 0; i < C; i++) most = max(most, __float_as_uint(l.x[i]) & 0x7FFFFFFF);
  most = warp_max(most);
  return most < 0x7F800000 ? __uint_as_float(most) : NAN;
}

template <int C>
__device__ inline float fitted_scale(const LaneVector<C>& l, int dim, float scale) {
  double products = 0;
  int squares = 0;
#pragma unroll
  for (int i = 0; i < C; i++) {
    if (lane_of() + kWarp * i >= dim) break;
    const int value = int(int8_t(levels_of(uint32_t(nearest_level(l.x[i] / scale)))));
    products += double(l.x[i]) * value, squares += value * value;
  }
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) products += __shfl_xor_sync(~0u, products, d);
  return float(products / warp_sum(squares));
}

template <int C>
__device__ inline uint16_t encode(const LaneVector<C>& l, int bits, int dim, LaneLevels<C>& codes) {
  constexpr uint16_t kNan = 0x7E00;
  const float most = largest_magnitude(l);
  float scale = most / tqn::cache::kMax;
  if (bits == 4)
#pragma unroll 1
    for (int round = 0; round < 2 && scale > 0; round++) scale = fitted_scale(l, dim, scale);
  const uint16_t half = isnan(scale) ? kNan : __half_as_ushort(__float2half_rn(scale));
  scale = half_value(half);
#pragma unroll
  for (int i = 0; i < C; i++) {
    const float v = scale > 0 ? l.x[i] / scale : 0;
    constexpr float limit = tqn::cache::kMax;
    codes.code[i] = bits == 4 ? nearest_level(v) : int(fminf(fmaxf(rintf(v), -limit), limit));
  }
  return half;
}

// Where a head's tiles stand in its cache, and the bytes of one.
struct HeadTiles {
  uint8_t* first;
  int64_t bytes;
  __device__ HeadTiles(const CodedView& c, bool key, int slot, int kv_head) {
    bytes = tqn::cache::tile_bytes(key ? c.k_bits : c.v_bits, c.a.shape.head_dim);
    first = static_cast<uint8_t*>(key ? c.a.k_cache : c.a.v_cache) +
            (int64_t(slot) * c.a.shape.n_kv_heads + kv_head) * tqn::cache::tiles(c.a.capacity) * bytes;
  }
};

// Encodes a key or value at `position` of a slot; bytes of 4-bit codes have two channels. codes: kMaxCodedDim bytes of shared memory for
// this warp alone.
template <int C>
__device__ inline void store_codes(const CodedView& c, const LaneVector<C>& l, bool key, int slot, int position, int kv_head,
                                   uint8_t* codes) {
  const int bits = key ? c.k_bits : c.v_bits, dim = c.a.shape.head_dim, padded_dim = int(tqn::cache::padded(dim));
  const int lane = position % tqn::cache::kTile;
  LaneLevels<C> levels;
  const uint16_t scale = encode(l, bits, dim, levels);
#pragma unroll
  for (int i = 0; i < C; i++) codes[lane_of() + kWarp * i] = uint8_t(levels.code[i]);
  __syncwarp();
  const HeadTiles tiles(c, key, slot, kv_head);
  uint8_t* const tile = tiles.first + position / tqn::cache::kTile * tiles.bytes;
  const int apart = key ? 4 : 8;  // channels between a byte's halves
  for (int channel = lane_of(); channel < padded_dim; channel += kWarp) {
    const int64_t byte = key ? tqn::cache::key_byte(bits, channel, lane) : tqn::cache::value_byte(bits, channel, lane);
    if (bits == 8)
      tile[byte] = codes[channel];
    else if (!(channel & apart))
      tile[byte] = uint8_t(codes[channel] | codes[channel + apart] << 4);
  }
  if (lane_of() == 0) reinterpret_cast<uint16_t*>(tile + tqn::cache::code_bytes(bits, padded_dim))[lane] = scale;
}

// As kernels::quantize; the scale. Channel c goes to place_of(c).
template <int C, class Place>
__device__ inline float quantize_query(const LaneVector<C>& l, int padded_dim, int8_t* codes, Place&& place_of) {
  constexpr float limit = tqn::kActivationMax;
  const float scale = largest_magnitude(l) / limit;
#pragma unroll
  for (int i = 0; i < C; i++) {
    const int c = lane_of() + kWarp * i;
    if (c < padded_dim) codes[place_of(c)] = int8_t(scale > 0 ? fminf(fmaxf(rintf(l.x[i] / scale), -limit), limit) : 0);
  }
  return scale;
}

}  // namespace tq::cuda
