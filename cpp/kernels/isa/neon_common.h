// What both Arm vocabularies share: NEON with the dot-product extension. Row operands are signed bytes.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "format/matrix.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kLanes = 4;
inline constexpr int kDirectTokens = 1;
inline constexpr int kTogether = 1, kAhead = 1;
inline constexpr int kPanelRegisters = 4, kPanelTokens = 6;
inline constexpr int kOffset = 0;
inline constexpr int kRowBytes = 16;

using F32 = float32x4_t;
using I32 = int32x4_t;
using Row = int8x16_t;
using Acts = int8x16_t;

inline F32 load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F32 x) { vst1q_f32(p, x); }
inline F32 set1(float x) { return vdupq_n_f32(x); }
inline F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
inline F32 maximum(F32 a, F32 b) { return vmaxq_f32(a, b); }
inline F32 minimum(F32 a, F32 b) { return vminq_f32(a, b); }
inline F32 absolute(F32 a) { return vabsq_f32(a); }
inline F32 round_even(F32 x) { return vrndnq_f32(x); }
inline F32 select_less(F32 a, F32 b, F32 yes, F32 no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
inline F32 pow2(F32 n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)); }
inline float sum(F32 x) { return vaddvq_f32(x); }
inline float largest(F32 x) { return vmaxvq_f32(x); }

// Each stage adds the partner at distance 1, 2; the upper one of a pair counts negative.
inline F32 hadamard_lanes(F32 x) {
  const float odd[4] = {1, -1, 1, -1}, upper[4] = {1, 1, -1, -1};
  x = vfmaq_f32(vrev64q_f32(x), x, vld1q_f32(odd));
  return vfmaq_f32(vextq_f32(x, x, 2), x, vld1q_f32(upper));
}

template <int D>
F32 exchange_low(F32 a, F32 b) {
  return D == 2 ? vcombine_f32(vget_low_f32(a), vget_low_f32(b)) : vtrn1q_f32(a, b);
}
template <int D>
F32 exchange_high(F32 a, F32 b) {
  return D == 2 ? vcombine_f32(vget_high_f32(a), vget_high_f32(b)) : vtrn2q_f32(a, b);
}

inline float f16_value(uint16_t bits) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0); }
inline float bf16_value(uint16_t bits) { return vgetq_lane_f32(vreinterpretq_f32_u32(vshll_n_u16(vdup_n_u16(bits), 16)), 0); }
inline F32 gather(const float* x, const uint16_t* at) {
  const float lanes[4] = {x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
  return vld1q_f32(lanes);
}
inline F32 lane_numbers() {
  const float lanes[4] = {0, 1, 2, 3};
  return vld1q_f32(lanes);
}
inline F32 load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F32 load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline void store_f16(uint16_t* p, F32 x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
inline void store_i8(int8_t* p, F32 integers) {
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(integers));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  std::memcpy(p, &bytes, 4);
}

inline I32 set1_i32(int32_t x) { return vdupq_n_s32(x); }
inline I32 load_i32(const int32_t* p) { return vld1q_s32(p); }
inline void store_i32(int32_t* p, I32 x) { vst1q_s32(p, x); }
inline F32 to_f32(I32 x) { return vcvtq_f32_s32(x); }

inline Row load_row(const int8_t* p) { return vld1q_s8(p); }
inline void store_row(int8_t* p, Row w) { vst1q_s8(p, w); }
inline Acts load_acts(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline I32 dot(I32 acc, Row w, Acts a) { return vdotq_s32(acc, w, a); }
template <int C>
F32 column(Row w) {
  return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s8(w), 24 - 8 * C), 24));
}

// A register filled by a function of the lane's number.
template <class F>
uint8x16_t bytes_of(const F& f) {
  uint8_t lanes[16];
  for (int i = 0; i < 16; i++) lanes[i] = uint8_t(f(i));
  return vld1q_u8(lanes);
}
template <class F>
uint16x8_t words_of(const F& f) {
  uint16_t lanes[8];
  for (int i = 0; i < 8; i++) lanes[i] = uint16_t(f(i));
  return vld1q_u16(lanes);
}

// Indices in bits 10..15 of 16 steps' lanes, looked up in the codebook.
class Table {
 public:
  explicit Table(const int8_t* codebook) : entries_(vld1q_s8_x4(codebook)) {}
  Row operator()(uint16x8_t first, uint16x8_t second) const {
    const uint8x16_t upper = vuzp2q_u8(vreinterpretq_u8_u16(first), vreinterpretq_u8_u16(second));
    return vqtbl4q_s8(entries_, vshrq_n_u8(upper, 2));
  }

 private:
  int8x16x4_t entries_;
};

// Eight bytes of a tile's circular string.
template <int K>
uint64_t circular8(const uint8_t* tile, int byte) {
  constexpr int bytes = int(tqn::tile_bytes(K));
  uint64_t low, high;
  if (byte + 8 <= bytes) return std::memcpy(&low, tile + byte, 8), low;
  std::memcpy(&low, tile + bytes - 8, 8);
  std::memcpy(&high, tile, 8);
  const int beyond = byte + 8 - bytes;
  return low >> (8 * beyond) | high << (64 - 8 * beyond);
}

// A register is 16 steps, four rows. Their bits, at most 57 for k <= 3, stand in both quadwords, the second one shifted by 4, so that each
// window starts at bit 0..4 of some byte and lies within two bytes. With the bits below it cleared, (window << s) * (M << (4 - s)) has the
// codebook's index in its upper 6 bits: what stands above the window leaves the 16-bit product.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : table_(codebook) {
    for (int half = 0; half < 2; half++) {
      const auto bit = [half](int lane) { return K * (8 * half + lane); };
      const auto copy = [bit](int lane) { return K < 4 && bit(lane) % 8 > 4; };
      const auto shift = [bit, copy](int lane) { return bit(lane) % 8 - 4 * copy(lane); };
      gather_[half] = bytes_of([=](int i) { return bit(i / 2) / 8 + 8 * copy(i / 2) + i % 2; });
      mask_[half] = words_of([=](int lane) { return 0xFFFF << shift(lane); });
      factor_[half] = words_of([=](int lane) { return tqn::multiplier(K) << (4 - shift(lane)); });
    }
  }
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const uint8x16_t from = bits(tile, 2 * K * g);
    *w = table_(product(from, 0), product(from, 1));
  }

 private:
  static uint8x16_t bits(const uint8_t* tile, int byte) {
    const uint64_t low = circular8<K>(tile, byte);
    if (K == 4)
      return vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(circular8<K>(tile, (byte + 8) % tqn::tile_bytes(K)))));
    return vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(low >> 4)));
  }
  uint16x8_t product(uint8x16_t from, int half) const {
    return vmulq_u16(vandq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(from, gather_[half])), mask_[half]), factor_[half]);
  }
  Table table_;
  uint8x16_t gather_[2];
  uint16x8_t mask_[2], factor_[2];
};

// Six bits a step, 12 bytes a register; a multiplication moves each window to the top of its lane.
template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : table_(codebook) {
    const auto bit = [](int lane) { return 6 * lane; };
    for (int half = 0; half < 2; half++)
      for (int last = 0; last < 2; last++)
        gather_[last][half] = bytes_of([=](int i) { return 4 * last + 6 * half + bit(i / 2) / 8 + i % 2; });
    factor_ = words_of([=](int lane) { return 1 << (10 - bit(lane) % 8); });
  }
  // The last register is read from 4 bytes before, to stay within the tile.
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const int last = g == 15;
    const uint8x16_t from = vld1q_u8(tile + 12 * g - 4 * last);
    *w = table_(product(from, gather_[last][0]), product(from, gather_[last][1]));
  }

 private:
  uint16x8_t product(uint8x16_t from, uint8x16_t gather) const {
    return vmulq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(from, gather)), factor_);
  }
  Table table_;
  uint8x16_t gather_[2][2];
  uint16x8_t factor_;
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  void operator()(const uint8_t* tile, int g, Row* w) const { *w = vreinterpretq_s8_u8(vld1q_u8(tile + 16 * g)); }
};

// Decoders give the rows in their own order.
template <int K>
void restore_rows(void*) {}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE

#include "kernels/isa/one_dot.h"
