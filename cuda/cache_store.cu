// Queries, keys and values on their way to a cache in codes: rotary embedding, rotation, and the encoder of format/cache.cpp, operation by
// operation, so that the integers are the same. A warp works on one vector.
#include <cmath>

#include "cache_codes.cuh"
#include "dependent.h"
#include "rope.cuh"
#include "rotation.cuh"

namespace tq::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxDim = 256, kLaneChannels = kMaxDim / kWarp;

struct Lane {
  float x[kLaneChannels];  // channels lane + 32 i
  int code[kLaneChannels];
};

__device__ inline int nearest_level(float x) {
  constexpr float middles[7] = {12, 24.5f, 37.5f, 51, 66.5f, 85.5f, 111.5f};
  int step = 0;
#pragma unroll
  for (int i = 0; i < 7; i++) step += fabsf(x) > middles[i];
  return x < 0 ? tqn::cache::kLevels / 2 - 1 - step : tqn::cache::kLevels / 2 + step;
}

__device__ inline int level(int code) { return int(int8_t(levels_of(uint32_t(code)))); }

__device__ inline float fitted_scale(const Lane& l, int dim, float scale) {
  double products = 0;
  int squares = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) {
    if (int(threadIdx.x) + kWarp * i >= dim) break;
    const int value = level(nearest_level(l.x[i] / scale));
    products += double(l.x[i]) * value, squares += value * value;
  }
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) products += __shfl_xor_sync(~0u, products, d), squares += __shfl_xor_sync(~0u, squares, d);
  return float(products / squares);
}

// NaN where x is not finite.
__device__ inline float largest_magnitude(const Lane& l) {
  float most = 0, poison = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) most = fmaxf(most, fabsf(l.x[i])), poison += l.x[i] * 0;
  return warp_max(most) + warp_sum(poison);
}

__device__ inline uint16_t encode(Lane& l, int bits, int dim) {
  constexpr uint16_t kNan = 0x7E00;
  const float most = largest_magnitude(l);
  float scale = most / tqn::cache::kMax;
  if (bits == 4)
    for (int round = 0; round < 2 && scale > 0; round++) scale = fitted_scale(l, dim, scale);
  const uint16_t half = isnan(scale) ? kNan : __half_as_ushort(__float2half_rn(scale));
  scale = half_value(half);
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) {
    const float v = scale > 0 ? l.x[i] / scale : 0;
    constexpr float limit = tqn::cache::kMax;
    l.code[i] = bits == 4 ? nearest_level(v) : int(fminf(fmaxf(rintf(v), -limit), limit));
  }
  return half;
}

// The vector's codes at position `lane` of a tile, through shared memory: bytes of 4-bit codes have two channels.
__device__ inline void put(const Lane& l, bool key, int bits, int padded_dim, int lane, uint16_t scale, uint8_t* codes, uint8_t* tile) {
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) codes[threadIdx.x + kWarp * i] = uint8_t(l.code[i]);
  __syncwarp();
  const int apart = key ? 4 : 8;  // channels between a byte's halves
  for (int c = threadIdx.x; c < padded_dim; c += kWarp) {
    const int64_t byte = key ? tqn::cache::key_byte(bits, c, lane) : tqn::cache::value_byte(bits, c, lane);
    if (bits == 8)
      tile[byte] = codes[c];
    else if (!(c & apart))
      tile[byte] = uint8_t(codes[c] | codes[c + apart] << 4);
  }
  if (threadIdx.x == 0) reinterpret_cast<uint16_t*>(tile + tqn::cache::code_bytes(bits, padded_dim))[lane] = scale;
}

// As kernels::quantize.
__device__ inline void put_query(Lane& l, int padded_dim, int8_t* codes, float* to_scale) {
  constexpr float limit = tqn::kActivationMax;
  const float scale = largest_magnitude(l) / limit;
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) {
    const int c = threadIdx.x + kWarp * i;
    if (c < padded_dim) codes[c] = int8_t(scale > 0 ? fminf(fmaxf(rintf(l.x[i] / scale), -limit), limit) : 0);
  }
  if (threadIdx.x == 0) *to_scale = scale;
}

__global__ void __launch_bounds__(kWarp) store_codes_kernel(const __grid_constant__ CodedView c) {
  __shared__ float vectors[2 * padded_size(kMaxDim)];
  __shared__ uint8_t codes[kMaxDim];
  const AttentionView& a = c.a;
  const int row = blockIdx.y, dim = a.shape.head_dim, n_heads = a.shape.n_heads, n_kv = a.shape.n_kv_heads;
  const int padded_dim = int(tqn::cache::padded(dim));
  const int head = blockIdx.x, kv_head = (head - n_heads) % n_kv;
  const bool query = head < n_heads, key = !query && head < n_heads + n_kv;
  release_dependents();
  await_inputs();
  float* const x = query ? a.q + (int64_t(row) * n_heads + head) * dim : (key ? a.k : a.v) + (int64_t(row) * n_kv + kv_head) * dim;
  if (a.cos && (query || key)) rope(a, row, x);
  if (query && a.growth.beta != 0) grow_query(a, row, x);
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kWarp) vectors[padded(i)] = c.rotation.signs[i] * x[i];
  __syncthreads();
  const float* const rotated = mix(c.rotation, vectors, vectors + padded_size(kMaxDim));
  const float factor = hadamard_factor(c.rotation);
  Lane l;
#pragma unroll
  for (int i = 0; i < kLaneChannels; i++) {
    const int channel = threadIdx.x + kWarp * i;
    l.x[i] = channel < dim ? factor * rotated[padded(channel)] : 0;
    if (channel < dim) x[channel] = l.x[i];
  }
  if (query) {
    const int64_t at = int64_t(row) * n_heads + head;
    return put_query(l, padded_dim, c.q_codes + at * padded_dim, c.q_scale + at);
  }
  const int bits = key ? c.k_bits : c.v_bits, position = a.batch.positions[row];
  const uint16_t scale = encode(l, bits, dim);
  const int64_t tile = (int64_t(a.batch.slots[row]) * n_kv + kv_head) * tqn::cache::tiles(a.capacity) + position / tqn::cache::kTile;
  put(l, key, bits, padded_dim, position % tqn::cache::kTile, scale, codes,
      static_cast<uint8_t*>(key ? a.k_cache : a.v_cache) + tile * tqn::cache::tile_bytes(bits, dim));
}

}  // namespace

void store_codes(const CodedView& c, cudaStream_t stream) {
  const dim3 grid(c.a.shape.n_heads + 2 * c.a.shape.n_kv_heads, c.a.batch.rows);
  launch_dependent("store_codes", store_codes_kernel, grid, kWarp, 0, stream, c);
}

}  // namespace tq::cuda
