// The part of the layout of cached codes (cache.h) that kernels of every language read, in the common subset of C++20, CUDA C++ and the
// Metal shading language.
#pragma once
#include "format/tqn_layout.h"

namespace tqn {
namespace cache {

TQN_VALUE int kTile = 64;      // positions
TQN_VALUE int kChannels = 16;  // a vector is padded with zeros to a multiple of these
TQN_VALUE int kMax = 127;      // of an 8-bit code
TQN_VALUE int kLevels = 16;
TQN_VALUE int8_t kLevel[16] = {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127};  // of a 4-bit code

TQN_FN int64_t padded(int64_t head_dim) { return (head_dim + kChannels - 1) / kChannels * kChannels; }
TQN_FN int64_t code_bytes(int bits, int64_t head_dim) { return padded(head_dim) * kTile * bits / 8; }
TQN_FN int64_t tile_bytes(int bits, int64_t head_dim) { return code_bytes(bits, head_dim) + kTile * int64_t(sizeof(uint16_t)); }
TQN_FN int64_t tiles(int64_t positions) { return (positions + kTile - 1) / kTile; }

// The byte of channel c of the tile's position `lane`. 4 bits: its lower half, or the upper one where in_upper_half().
TQN_FN int64_t key_byte(int bits, int64_t c, int lane) { return (c / (bits == 8 ? 4 : 8) * kTile + lane) * 4 + c % 4; }
TQN_FN bool key_in_upper_half(int64_t c) { return c / 4 % 2 == 1; }
TQN_FN int64_t value_byte(int bits, int64_t c, int lane) {
  return (c / (bits == 8 ? 8 : 16) * (kTile / 2) + lane / 2) * 16 + c % 8 * 2 + lane % 2;
}
TQN_FN bool value_in_upper_half(int64_t c) { return c / 8 % 2 == 1; }

// The level nearest to x: between positive ones the border counts as below.
TQN_FN int nearest_level(float x) {
  const float magnitude = x < 0 ? -x : x;
  const int step = (magnitude > 12) + (magnitude > 24.5f) + (magnitude > 37.5f) + (magnitude > 51) + (magnitude > 66.5f) +
                   (magnitude > 85.5f) + (magnitude > 111.5f);
  return x < 0 ? kLevels / 2 - 1 - step : kLevels / 2 + step;
}

}  // namespace cache
}  // namespace tqn
