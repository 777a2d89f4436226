// Codes of cached keys and values (format/cache.h) in registers.
#pragma once
#include "epilogue.cuh"
#include "format/cache.h"

namespace tq::cuda {

// Four levels as the bytes of a word.
constexpr uint32_t level_word(int first) {
  uint32_t word = 0;
  for (int i = 0; i < 4; i++) word |= uint32_t(uint8_t(tqn::cache::kLevel[first + i])) << 8 * i;
  return word;
}

// The levels of four 4-bit codes in the lower half of a word.
__device__ inline uint32_t levels_of(uint32_t codes) {
  const uint32_t choice = codes & 0x7777, upper = (codes & 0x8888) >> 1;
  constexpr uint32_t words[4] = {level_word(0), level_word(4), level_word(8), level_word(12)};
  return __byte_perm(__byte_perm(words[0], words[1], choice), __byte_perm(words[2], words[3], choice), 0x3210 | upper);
}

// The levels of the lower (half 0) or upper (half 1) four bits of a word's bytes.
__device__ inline uint32_t half_levels(uint32_t word, int half) {
  const uint32_t codes = word >> 4 * half & 0x0F0F0F0F;
  return levels_of(__byte_perm(codes | codes >> 4, 0, 0x4420));
}

// Keys of 4 bits: a word's two halves hold channels in the order 0 4 1 5 and 2 6 3 7, which a query's codes are brought to instead.
__device__ inline int key_channel(int bits, int c) { return bits == 8 ? c : c / 8 * 8 + c % 2 * 4 + c % 8 / 2; }
// Where a channel's code stands then.
__device__ inline int key_place(int bits, int c) { return bits == 8 ? c : c / 8 * 8 + c % 4 * 2 + c % 8 / 4; }

__device__ inline uint16_t cached_scale(const uint8_t* tile, int64_t code_bytes, int lane) {
  return reinterpret_cast<const uint16_t*>(tile + code_bytes)[lane];
}

// Bytes 2 i and 2 i + 1 of a word of integers, times a scale.
__device__ inline uint32_t scaled_halves(uint32_t bytes, int pair, __half2 scale) {
  // 0x6400 is 1024 in half precision, whose last bit counts 1.
  const uint32_t biased = __byte_perm(bytes ^ 0x80808080, 0x64646464, pair == 0 ? 0x4140 : 0x4342);
  const __half2 value = __hmul2(__hsub2(*reinterpret_cast<const __half2*>(&biased), __float2half2_rn(1024 + 128)), scale);
  return *reinterpret_cast<const uint32_t*>(&value);
}

}  // namespace tq::cuda
