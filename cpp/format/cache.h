// Codes of cached keys and values: the one definition of their layout. A head's vector of one position, rotated, becomes integers of 8 bits
// or levels of 4 bits times one scale (token-wise codes after an orthonormal rotation: SAW-INT4, arXiv:2604.19157; TurboQuant,
// arXiv:2504.19874). 64 positions of a head form a tile: the codes, then 64 scales (float16).
//
// Keys stand so that a register holds one group of four channels of neighbouring positions (their products with a query's four channels are
// summed per position); values so that it holds pairs of positions of neighbouring channels (summed over positions).
#pragma once
#include <cstdint>

namespace tqn::cache {

inline constexpr int kTile = 64;                   // positions
inline constexpr int kChannels = 16;               // a vector is padded with zeros to a multiple of these
inline constexpr uint64_t kRotationSeed = 0x6b76;  // of the rotation of vectors of head_dim (kernels::RotationPlan)
inline constexpr int kCodesVersion = 1;            // of the rotation and of all that follows: saved states name it
inline constexpr int kMax = 127;                   // of an 8-bit code
inline constexpr int kLevels = 16;
inline constexpr int8_t kLevel[kLevels] = {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127};  // of a 4-bit code

constexpr int64_t padded(int64_t head_dim) { return (head_dim + kChannels - 1) / kChannels * kChannels; }
constexpr int64_t code_bytes(int bits, int64_t head_dim) { return padded(head_dim) * kTile * bits / 8; }
constexpr int64_t tile_bytes(int bits, int64_t head_dim) { return code_bytes(bits, head_dim) + kTile * int64_t(sizeof(uint16_t)); }
constexpr int64_t tiles(int64_t positions) { return (positions + kTile - 1) / kTile; }

// The byte of channel c of the tile's position `lane`. 4 bits: its lower half, or the upper one where in_upper_half().
constexpr int64_t key_byte(int bits, int64_t c, int lane) { return (c / (bits == 8 ? 4 : 8) * kTile + lane) * 4 + c % 4; }
constexpr bool key_in_upper_half(int64_t c) { return c / 4 % 2 == 1; }
constexpr int64_t value_byte(int bits, int64_t c, int lane) {
  return (c / (bits == 8 ? 8 : 16) * (kTile / 2) + lane / 2) * 16 + c % 8 * 2 + lane % 2;
}
constexpr bool value_in_upper_half(int64_t c) { return c / 8 % 2 == 1; }

}  // namespace tqn::cache

namespace tq {

enum class CacheSide : uint8_t { key, value };

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
