// Codes of cached keys and values; with cache_layout.h, its part for kernels of every language, the one definition of their layout. A
// head's vector of one position, rotated, becomes integers of 8 bits or levels of 4 bits times one scale (token-wise codes after an
// orthonormal rotation: SAW-INT4, arXiv:2604.19157; TurboQuant, arXiv:2504.19874). 64 positions of a head form a tile: the codes, then 64
// scales (float16).
//
// Keys stand so that a register holds one group of four channels of neighbouring positions (their products with a query's four channels are
// summed per position); values so that it holds pairs of positions of neighbouring channels (summed over positions).
#pragma once
#include <cstdint>

#include "format/cache_layout.h"

namespace tqn::cache {

inline constexpr uint64_t kRotationSeed = 0x6b76;  // of the rotation of vectors of head_dim (kernels::RotationPlan)
inline constexpr int kCodesVersion = 1;            // of the rotation and of all of cache_layout.h: saved states name it

}  // namespace tqn::cache

namespace tq {

enum class CacheSide : uint8_t { key, value };

// What a file may say of a layer's keys (docs/format.md): of every channel of one key/value head, behind the rotary embedding; null:
// nothing. A key is centred, then divided by the balance, before it is rotated and encoded, and a query is multiplied by it. A query's
// scores with all keys so treated are off by the same number, its product with the mean, which no softmax sees.
struct KeyStatistics {
  const float *mean = nullptr, *balance = nullptr;
};
void balance_key(const KeyStatistics& s, int head_dim, float* k);    // k <- (k - mean) / balance
void unbalance_key(const KeyStatistics& s, int head_dim, float* k);  // and back
void balance_query(const KeyStatistics& s, int head_dim, float* q);  // q <- q * balance
inline constexpr float kMaxBalance = 1024;                           // and 1 / kMaxBalance: what a file may hold
// Of a mean, and of a mean / balance: half precision's largest, as of keys that are no codes. A head of 512 such channels has a scale of
// 512^.5 * 65504 / 127 at most, which half precision holds.
inline constexpr float kMaxKeyMean = 65504;

// Writes the codes and the scale of x (head_dim) as position `lane` of a tile; what the tile holds of other positions stays. The integers
// are the same on every machine. Where x is not finite the scale is NaN.
void encode_cached(CacheSide side, int bits, const float* x, int head_dim, int lane, uint8_t* tile);
// The vector that these codes stand for.
void decode_cached(CacheSide side, int bits, const uint8_t* tile, int lane, int head_dim, float* x);
// The integers alone: (padded(head_dim)), the padding is 0 for 8 bits and the smallest level for 4.
void cached_codes(CacheSide side, int bits, const uint8_t* tile, int lane, int head_dim, int8_t* codes);
// Zeros in place of what a tile holds of positions from `first_lane` on.
void clear_cached(CacheSide side, int bits, int head_dim, int first_lane, uint8_t* tile);
uint16_t cached_scale(int bits, const uint8_t* tile, int lane, int head_dim);  // float16

}  // namespace tq
