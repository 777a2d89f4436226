#include "format/cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/matrix.h"

namespace tq {
namespace {

using namespace tqn::cache;

struct Place {
  int64_t byte;
  bool upper;
};
Place place_of(CacheSide side, int bits, int64_t c, int lane) {
  if (side == CacheSide::key) return {key_byte(bits, c, lane), bits == 4 && key_in_upper_half(c)};
  return {value_byte(bits, c, lane), bits == 4 && value_in_upper_half(c)};
}

void put_scale(int bits, float scale, int head_dim, int lane, uint8_t* tile) {
  const uint16_t half = f32_to_f16(scale);
  std::memcpy(tile + code_bytes(bits, head_dim) + 2 * lane, &half, sizeof half);
}

// The scale that fits the levels best, sum(x l) / sum(l l). Products are exact in float64, so that fused arithmetic changes nothing, and
// the sum has the order that 32 lanes add in.
float fitted_scale(const float* x, int head_dim, float scale) {
  constexpr int kLanes = 32;
  double products[kLanes] = {};
  int squares = 0;
  for (int c = 0; c < head_dim; c++) {
    const int level = kLevel[nearest_level(x[c] / scale)];
    products[c % kLanes] += double(x[c]) * level, squares += level * level;
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) products[i] += products[i + half];
  return float(products[0] / squares);
}

float scale_of(int bits, const float* x, int head_dim) {
  float most = 0;
  bool finite = true;
  for (int c = 0; c < head_dim; c++) most = std::max(most, std::fabs(x[c])), finite = finite && std::isfinite(x[c]);
  if (!finite) return NAN;
  float scale = most / kMax;
  if (bits == 4)
    for (int round = 0; round < 2 && scale > 0; round++) scale = fitted_scale(x, head_dim, scale);
  return f16_to_f32(f32_to_f16(scale));
}

void encode_8(CacheSide side, const float* x, int head_dim, float scale, int lane, uint8_t* tile) {
  for (int64_t c = 0; c < padded(head_dim); c++) {
    const float v = c < head_dim && scale > 0 ? std::nearbyint(x[c] / scale) : 0;
    tile[place_of(side, 8, c, lane).byte] = uint8_t(int8_t(std::clamp<float>(v, -kMax, kMax)));
  }
}

void encode_4(CacheSide side, const float* x, int head_dim, float scale, int lane, uint8_t* tile) {
  for (int64_t c = 0; c < padded(head_dim); c++) {
    const auto [byte, upper] = place_of(side, 4, c, lane);
    const int level = nearest_level(c < head_dim && scale > 0 ? x[c] / scale : 0);
    tile[byte] = uint8_t(upper ? (tile[byte] & 0x0F) | level << 4 : (tile[byte] & 0xF0) | level);
  }
}

}  // namespace

void balance_key(const KeyStatistics& s, int head_dim, float* k) {
  for (int c = 0; s.mean && c < head_dim; c++) k[c] -= s.mean[c];
  for (int c = 0; s.balance && c < head_dim; c++) k[c] /= s.balance[c];
}

void unbalance_key(const KeyStatistics& s, int head_dim, float* k) {
  for (int c = 0; s.balance && c < head_dim; c++) k[c] *= s.balance[c];
  for (int c = 0; s.mean && c < head_dim; c++) k[c] += s.mean[c];
}

void balance_query(const KeyStatistics& s, int head_dim, float* q) {
  for (int c = 0; s.balance && c < head_dim; c++) q[c] *= s.balance[c];
}

void encode_cached(CacheSide side, int bits, const float* x, int head_dim, int lane, uint8_t* tile) {
  const float scale = scale_of(bits, x, head_dim);
  put_scale(bits, scale, head_dim, lane, tile);
  (bits == 8 ? encode_8 : encode_4)(side, x, head_dim, scale, lane, tile);
}

void cached_codes(CacheSide side, int bits, const uint8_t* tile, int lane, int head_dim, int8_t* codes) {
  for (int64_t c = 0; c < padded(head_dim); c++) {
    const auto [byte, upper] = place_of(side, bits, c, lane);
    codes[c] = bits == 8 ? int8_t(tile[byte]) : kLevel[upper ? tile[byte] >> 4 : tile[byte] & 15];
  }
}

uint16_t cached_scale(int bits, const uint8_t* tile, int lane, int head_dim) {
  uint16_t half;
  std::memcpy(&half, tile + code_bytes(bits, head_dim) + 2 * lane, sizeof half);
  return half;
}

void clear_cached(CacheSide side, int bits, int head_dim, int first_lane, uint8_t* tile) {
  for (int lane = first_lane; lane < kTile; lane++) {
    for (int64_t c = 0; c < padded(head_dim); c++) tile[place_of(side, bits, c, lane).byte] = 0;  // a byte's halves are of one position
    std::memset(tile + code_bytes(bits, head_dim) + 2 * lane, 0, sizeof(uint16_t));
  }
}

void decode_cached(CacheSide side, int bits, const uint8_t* tile, int lane, int head_dim, float* x) {
  const float scale = f16_to_f32(cached_scale(bits, tile, lane, head_dim));
  for (int c = 0; c < head_dim; c++) {
    const auto [byte, upper] = place_of(side, bits, c, lane);
    x[c] = scale * float(bits == 8 ? int8_t(tile[byte]) : kLevel[upper ? tile[byte] >> 4 : tile[byte] & 15]);
  }
}

}  // namespace tq
