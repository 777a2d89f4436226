// What both Arm vocabularies share: NEON with the dot-product extension. Row operands are signed bytes.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "format/cache.h"
#include "format/matrix.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kLanes = 4;
inline constexpr int kDirectTokens = 1, kRepeatedTokens = 1;
inline constexpr int kSide = 1, kHalves = 2, kParts = 1;
inline constexpr bool kPairSums = false;
inline constexpr int kPanelRegisters = 4, kPanelTokens = 6, kFloatTokens = 6;
inline constexpr int kOffset = 0;
inline constexpr int kRowBytes = 16;
inline constexpr int kFloatRegisters = 32;

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
inline Acts broadcast_acts(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline Acts load_acts(const int8_t* p, bool) { return broadcast_acts(p); }
inline I32 dot(I32 acc, Row w, Acts a) { return vdotq_s32(acc, w, a); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return vdotq_s32(acc, w, a); }  // small values are positive as signed bytes too
template <int C, int Offset>
F32 column(Row w) {
  return vcvtq_f32_s32(vsubq_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s8(w), 24 - 8 * C), 24), vdupq_n_s32(Offset)));
}

struct Bytes {
  uint8x16_t v;
  friend Bytes operator+(Bytes a, Bytes b) { return {vaddq_u8(a.v, b.v)}; }
};
template <int H>
Bytes load_plane(const uint8_t* p, const uint8_t*) {
  return {vld1q_u8(p + 16 * H)};
}
template <int H, int Further>
Bytes next_lane(Bytes, const uint8_t* plane) {
  return {H == 0 ? vld1q_u8(plane + Further) : vextq_u8(vld1q_u8(plane + 16), vld1q_u8(plane), Further)};
}
// Nothing is masked: indices are, before they are used.
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  if constexpr (Shift == 0) return low;
  const uint8x16_t shifted = vshrq_n_u8(low.v, Shift ? Shift : 1);
  if constexpr (Shift + Bits <= 8) return {shifted};
  return {vsliq_n_u8(shifted, high.v, Shift ? 8 - Shift : 7)};
}
inline Bytes with_offset(Bytes b) { return b; }

class Tables {
 public:
  explicit Tables(const int8_t* codebook)
      : first_(vreinterpretq_u8_s8(vld1q_s8(codebook))), second_(vreinterpretq_u8_s8(vld1q_s8(codebook + tqn::kTableSize))) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    const uint8x16_t fifteen = vdupq_n_u8(15);
    return {vaddq_u8(vqtbl1q_u8(first_, vandq_u8(at.first.v, fifteen)), vqtbl1q_u8(second_, vandq_u8(at.second.v, fifteen)))};
  }

 private:
  uint8x16_t first_, second_;
};

inline constexpr bool kSplitSigns = false;
class Codebook {
 public:
  explicit Codebook(const int8_t* codebook) : entries_(vld1q_s8_x4(codebook)) {}
  template <int Shift>
  Bytes at(Bytes low, Bytes high) const {
    return {vreinterpretq_u8_s8(vqtbl4q_s8(entries_, vandq_u8(field<6, Shift>(low, high).v, vdupq_n_u8(63))))};
  }

 private:
  int8x16x4_t entries_;
};

inline Row part(Bytes w, int) { return vreinterpretq_s8_u8(w.v); }
inline void store_values(int8_t* p, Bytes w) { vst1q_s8(p, part(w, 0)); }
inline void store_sums(int32_t* acc, const I32* sums, int32_t start) { store_i32(acc, vaddq_s32(*sums, vdupq_n_s32(start))); }

// Caches in codes: a row of four key channels; pairs of positions of 8 value channels, whose sums are formed at the end.
inline constexpr int kPairs = 1;
inline Row with_key_offset(Row w) { return w; }
struct Wide {
  int16x8_t low, high;
};
struct PairSums {
  int32x4_t v[4];
};
inline Wide widened(int8x16_t v) { return {vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v)}; }
inline Wide wide_8(const uint8_t* p) { return widened(vreinterpretq_s8_u8(vld1q_u8(p))); }
inline Wide pair_weights(const int16_t* w) {
  int32_t both;
  std::memcpy(&both, w, 4);
  const int16x8_t pairs = vreinterpretq_s16_s32(vdupq_n_s32(both));
  return {pairs, pairs};
}
inline PairSums no_sums() { return {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; }
inline PairSums add_products(PairSums sum, Wide v, Wide w) {
  return {vmlal_s16(sum.v[0], vget_low_s16(v.low), vget_low_s16(w.low)), vmlal_high_s16(sum.v[1], v.low, w.low),
          vmlal_s16(sum.v[2], vget_low_s16(v.high), vget_low_s16(w.low)), vmlal_high_s16(sum.v[3], v.high, w.low)};
}
inline void store_channels(int32_t* out, PairSums sum) {
  store_i32(out, vpaddq_s32(sum.v[0], sum.v[1])), store_i32(out + 4, vpaddq_s32(sum.v[2], sum.v[3]));
}

class Levels {
 public:
  Levels() : values_(vld1q_s8(tqn::cache::kLevel)) {}
  Row lower_row(Row codes) const { return vqtbl1q_s8(values_, vandq_u8(vreinterpretq_u8_s8(codes), vdupq_n_u8(15))); }
  Row upper_row(Row codes) const { return vqtbl1q_s8(values_, vshrq_n_u8(vreinterpretq_u8_s8(codes), 4)); }
  Wide wide_4(const uint8_t* p, bool upper) const {
    const Row codes = vreinterpretq_s8_u8(vld1q_u8(p));
    return widened(upper ? upper_row(codes) : lower_row(codes));
  }

 private:
  int8x16_t values_;
};

}  // namespace tq::kernels::TQ_ISA_NAMESPACE

#include "kernels/isa/no_pairs.h"
