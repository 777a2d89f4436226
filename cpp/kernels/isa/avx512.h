// AVX-512 F, BW, VL, DQ (Skylake-X and later): what AVX2 does, on two tiles at a time.
#pragma once

namespace tq::kernels::avx512 {

inline constexpr char kName[] = "avx512";
inline constexpr int kDirectTokens = 1, kRepeatedTokens = 2;
inline constexpr int kPanelTokens = 3, kFloatTokens = 6;
inline constexpr int kOffset = 0;
inline constexpr bool kPairSums = true;

}  // namespace tq::kernels::avx512

#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512 {

using Pairs = __m512i;
inline Pairs no_pairs() { return _mm512_setzero_si512(); }
inline Pairs add_pairs(Pairs sum, Row w, Acts a) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, a)); }
inline I32 add_widened(I32 acc, Pairs pairs) { return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return add_widened(acc, _mm512_maddubs_epi16(w, a)); }
// Signed values give their signs to the activations: magnitudes of at most 128 and 127 keep pair sums within 32512.
inline I32 dot(I32 acc, Row w, Acts a) {
  const __m512i signed_acts = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  return add_widened(acc, _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_acts));
}

inline PairSums add_products(PairSums sum, Wide v, Wide w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(v, w)); }

template <int, int>
Bytes next_lane(Bytes b, const uint8_t*) {
  return {_mm512_alignr_epi8(_mm512_shuffle_i64x2(b.v, b.v, 0xB1), b.v, 1)};
}
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  constexpr int all = (1 << Bits) - 1, own = (1 << (8 - Shift)) - 1;
  const __m512i shifted = Shift ? _mm512_srli_epi16(low.v, Shift) : low.v;
  if constexpr (Shift + Bits <= 8) return {_mm512_and_si512(shifted, _mm512_set1_epi8(all))};
  const __m512i own_bits = _mm512_and_si512(shifted, _mm512_set1_epi8(own)), others = _mm512_slli_epi16(high.v, 8 - Shift);
  return {_mm512_ternarylogic_epi64(own_bits, others, _mm512_set1_epi8(char(all & ~own)), 0xF8)};  // own_bits | others & mask
}

// A shuffle ignores bits 4 to 6 of an index, and no index reaches bit 7.
class Tables {
 public:
  explicit Tables(const int8_t* codebook) : first_(repeat16(codebook)), second_(repeat16(codebook + tqn::kTableSize)) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    return {_mm512_add_epi8(_mm512_shuffle_epi8(first_, at.first.v), _mm512_shuffle_epi8(second_, at.second.v))};
  }

 private:
  __m512i first_, second_;
};

inline constexpr bool kSplitSigns = true;
struct Split {
  __m512i magnitude;
  __mmask64 positive;
};
inline __m512i with_signs(__m512i magnitude, __mmask64 positive) {
  return _mm512_mask_blend_epi8(positive, _mm512_sub_epi8(_mm512_setzero_si512(), magnitude), magnitude);
}
inline I32 dot(I32 acc, Split w, Acts a) { return add_widened(acc, _mm512_maddubs_epi16(w.magnitude, with_signs(a, w.positive))); }
inline Split part(Split w, int) { return w; }
inline void store_values(int8_t* p, Split w) { store_values(p, Bytes{with_signs(w.magnitude, w.positive)}); }

// As in avx2_common.h: entry 63 - i is the negative of entry i. The upper half of the indices is folded onto the lower one.
class Codebook {
 public:
  explicit Codebook(const int8_t* codebook)
      : outer_(_mm512_abs_epi8(repeat16(codebook))), inner_(_mm512_abs_epi8(repeat16(codebook + 16))) {}
  template <int Shift>
  Split at(Bytes low, Bytes high) const {
    const __m512i at = field<6, Shift>(low, high).v;
    const __mmask64 positive = _mm512_test_epi8_mask(at, _mm512_set1_epi8(32));
    const __m512i folded = _mm512_mask_sub_epi8(at, positive, _mm512_set1_epi8(63), at);
    const __mmask64 inner = _mm512_test_epi8_mask(folded, _mm512_set1_epi8(16));
    return {_mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(outer_, folded), inner, inner_, folded), positive};
  }

 private:
  __m512i outer_, inner_;
};

}  // namespace tq::kernels::avx512

#include "kernels/isa/dot_panel.h"
